//! Which kind an object is of, and what to say of those that are not ours.

use fairlead_api::Kind;

use super::path::Path;
use super::problem::Effect;
use super::sink::Sink;
use super::suggest::suggest;
use super::unenforced::NOT_ENFORCED;

/// Istio's kinds that are known and no resources of a mesh.
const ISTIO_NOT_READ: &[&str] = &["IstioOperator"];

/// Why a kind is not read.
pub(super) enum UnknownKind {
    /// Of the group, but another version.
    Version(Kind),
    /// Istio's, known and without effect yet.
    NotRead,
    /// In a group of ours, but nobody knows it.
    Kind(Option<&'static str>),
    /// Of no concern to a mesh.
    Foreign(Option<&'static str>),
}

/// The kind of an object.
pub(super) fn known_kind(api_version: &str, kind: &str) -> Result<Kind, UnknownKind> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let of_group: Vec<&'static str> =
        Kind::ALL.iter().filter(|k| k.group() == group).map(|k| k.as_str()).collect();
    match Kind::from_name(kind).filter(|known| known.group() == group) {
        Some(known) if known.versions().contains(&version) => Ok(known),
        Some(known) => Err(UnknownKind::Version(known)),
        None if group.ends_with("istio.io") && ISTIO_NOT_READ.contains(&kind) => {
            Err(UnknownKind::NotRead)
        }
        None if group.ends_with("istio.io") => Err(UnknownKind::Kind(suggest(kind, &of_group))),
        // A slip in the group must not make a policy disappear.
        None if Kind::from_name(kind).is_some_and(Kind::is_security) => {
            Err(UnknownKind::Kind(Some("security.istio.io/v1")))
        }
        None => Err(UnknownKind::Foreign(suggest(kind, &of_group))),
    }
}

impl UnknownKind {
    /// Tells it; whether an object of ours may be behind it.
    pub(super) fn tell(self, api_version: &str, kind: &str, sink: &mut Sink<'_>) -> bool {
        let root = Path::Root;
        let near =
            |near: Option<&str>| near.map_or(String::new(), |n| format!("did you mean {n}?"));
        match self {
            Self::Version(known) => {
                let group = known.group();
                let served: Vec<String> = known
                    .versions()
                    .iter()
                    .map(
                        |v| if group.is_empty() { (*v).to_owned() } else { format!("{group}/{v}") },
                    )
                    .collect();
                let message = format!("{api_version} of {kind} is not served");
                sink.error(
                    &root.field("apiVersion"),
                    message,
                    &format!("one of {}", served.join(", ")),
                );
                true
            }
            Self::NotRead => {
                let message = format!("{kind} is {NOT_ENFORCED}");
                sink.warn_of(Effect::NotEnforced, &root.field("kind"), message, "");
                false
            }
            Self::Kind(suggestion) => {
                let message = format!("{kind} is not a kind of {api_version}");
                sink.error(&root.field("kind"), message, &near(suggestion));
                true
            }
            Self::Foreign(suggestion) => {
                let message = format!("{kind} ({api_version}) is of no concern to a mesh; ignored");
                sink.warn(&root.field("kind"), message, &near(suggestion));
                false
            }
        }
    }
}

//! docs/resources.md: which resources and fields there are, and what becomes of each.

use std::fmt::Write as _;

use anyhow::Result;
use fairlead_api::schema::Field;
use fairlead_api::{Kind, schema};
use fairlead_config::source::{Effect, effect, partly_enforced, partly_words};

const INTRODUCTION: &str = "\
# Resources

<!-- Written by `cargo xtask manifests` from the types in userspace/api and the lists in
     userspace/config/src/source/unenforced.rs. Do not edit. -->

Fairlead reads Istio's resources in every version that Istio serves; all versions of a kind have the same fields. Every field
is known: an unknown one is an error, and one that is accepted without effect is reported (`fairlead validate`, the admin
page `/problems`, the status of the object). In files, names may be written in camelCase or snake_case; the API server knows
camelCase.

- **enforced**: it does what it says.
- **not enforced**: accepted, reported, no effect yet. In kinds of `security.istio.io` it is not accepted: the policy is
  refused, and fails closed for the workloads that it selects.
- **partly**: it does some of what it says; reported.
- **refused**: not built yet, and traffic that it would apply to is refused rather than sent where nobody meant it to go;
  reported.

The definitions are in `manifests/crds` (`kubectl apply --server-side -k manifests/crds`). Names, versions, short names and
stored versions are Istio's, so where Istio's own definitions are installed they serve as well, and stay as they are: use
`manifests/overlays/beside-istio`. (Applied over them, these definitions conflict with theirs, and the server changes nothing.)
Rules that need no other object are part of the definitions (CEL); `fairlead validate` has the same and more. `tests/resources`
has objects that write every field of every kind.

";

/// The text of the page.
pub(super) fn table() -> Result<String> {
    let mut text = INTRODUCTION.to_owned();
    text.push_str("| kind | group | versions (stored) | short | state |\n|---|---|---|---|---|\n");
    let mut details = String::new();
    for kind in Kind::ALL {
        let Some(stored) = schema::stored_version(*kind) else { continue };
        let versions: Vec<String> = kind
            .versions()
            .iter()
            .map(|v| if *v == stored { format!("**{v}**") } else { (*v).to_owned() })
            .collect();
        let fields = schema::spec_fields(*kind)?;
        let (state, detail) = describe(*kind, &fields);
        let short = schema::short_names(*kind).join(", ");
        let (group, versions) = (kind.group(), versions.join(", "));
        let _ = writeln!(text, "| {kind} | {group} | {versions} | {short} | {state} |");
        details.push_str(&detail);
    }
    text.push_str(&details);
    Ok(text)
}

/// In a word, and field by field where that is not all.
fn describe(kind: Kind, fields: &[Field]) -> (&'static str, String) {
    if effect(kind, "") == Effect::NotEnforced {
        let state = if kind.is_security() { "refused: fails closed" } else { "not enforced" };
        return (state, String::new());
    }
    let mut leaves = fields.iter().filter(|field| field.leaf);
    let state = match leaves.any(|field| effect(kind, &field.path) == Effect::Enforced) {
        true => "enforced, with exceptions",
        false => "partly",
    };
    let mut rows = String::new();
    let mut said: Vec<&str> = Vec::new();
    for Field { path, description, .. } in fields {
        let state = match effect(kind, path) {
            Effect::Enforced => continue,
            Effect::NotEnforced if kind.is_security() => "policy refused",
            Effect::NotEnforced => "not enforced",
            Effect::Refused => "refused",
            Effect::Partly => "partly",
        };
        // Policies have the same fields wherever they stand.
        if path.contains("subsets[].trafficPolicy.") || path.contains("portLevelSettings[].") {
            continue;
        }
        // What holds for a field holds for all below it.
        let below = |above: &&str| {
            path.strip_prefix(*above).is_some_and(|rest| rest.starts_with(['.', '[', '{']))
        };
        if said.iter().any(below) {
            continue;
        }
        said.push(path);
        let words = partly_words(kind, path).map(|words| format!(" _{words}_"));
        let description = description.replace('|', "\\|") + &words.unwrap_or_default();
        let _ = writeln!(rows, "| `{path}` | {state} | {description} |");
    }
    for (path, words) in partly_enforced(kind) {
        let _ = writeln!(rows, "| `{path}` | some values | {words} |");
    }
    if rows.is_empty() {
        return ("enforced", String::new());
    }
    if kind == Kind::DestinationRule {
        rows.push_str("\nThe same holds for the traffic policies of subsets and ports.\n");
    }
    let head = "| field | state | what it means |\n|---|---|---|\n";
    (state, format!("\n## {kind}: fields without effect yet\n\n{head}{rows}"))
}

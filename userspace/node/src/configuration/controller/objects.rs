//! The objects of a stream as files of the store: one file for each, whose path is its key.
//!
//! The object has to be the one that its key names; whatever is wrong with it is a fault of that
//! key, so that a security policy that nobody can read closes its own scope and no more.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fairlead_api::{Kind, ObjectKey, StringMap};
use fairlead_config::source::{
    Effect, Format, ObjectRef, Parsed, Problem, Rejected, Severity, parse,
};
use fairlead_wire::config::{Fault, Key};

/// Largest object: what the API server accepts.
pub(super) const MAX_OBJECT_BYTES: usize = 3 << 19;
/// Most objects of a node.
pub(super) const MAX_OBJECTS: usize = 250_000;
/// Most bytes of all objects of a node, as JSON.
pub(super) const MAX_TOTAL_BYTES: u64 = 1 << 30;
/// Longest trust bundle.
pub(super) const MAX_TRUST_BYTES: usize = 1 << 20;
/// Longest version of an object.
const MAX_VERSION: usize = 256;
/// Faults of one object that the controller is told.
const MAX_FAULTS: usize = 20;
/// Stands for "no namespace" in a path; no namespace is called so.
const NO_NAMESPACE: &str = "-";

/// The path of an object: `networking.istio.io/v1/VirtualService/default/reviews`.
///
/// # Errors
/// The key is none that an API server could have.
pub(crate) fn path_of(key: &Key) -> Result<PathBuf, String> {
    let Key { api_version, kind, namespace, name } = key;
    let plain = |text: &str, limit: usize, more: &[u8]| {
        !text.is_empty()
            && text.len() <= limit
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || more.contains(&b))
    };
    let versioned = match api_version.split_once('/') {
        Some((group, version)) => plain(group, 253, b".-") && plain(version, 63, b""),
        None => plain(api_version, 63, b""),
    };
    let named = plain(name, 253, b".-:_") && name != "." && name != "..";
    let spaced = namespace.is_empty() || plain(namespace, 63, b"-") && namespace != NO_NAMESPACE;
    let grouped = !api_version.split('/').any(|part| part == "." || part == "..");
    if !(versioned && grouped && plain(kind, 63, b"") && spaced && named) {
        return Err(format!("{api_version:?} {kind:?} {namespace:?}/{name:?} is no object's key"));
    }
    let namespace = if namespace.is_empty() { NO_NAMESPACE } else { namespace };
    Ok(format!("{api_version}/{kind}/{namespace}/{name}").into())
}

/// The key of a path.
pub(super) fn key_of(path: &Path) -> Option<Key> {
    let mut parts = path.to_str()?.rsplitn(4, '/');
    let (name, namespace) = (parts.next()?, parts.next()?);
    let (kind, api_version) = (parts.next()?, parts.next()?);
    let namespace = if namespace == NO_NAMESPACE { "" } else { namespace };
    Some(Key {
        api_version: api_version.to_owned(),
        kind: kind.to_owned(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    })
}

/// The same key as the compiler knows it; `None` for kinds that it does not.
pub(super) fn object_key(key: &Key) -> Option<ObjectKey> {
    let group = key.api_version.split_once('/').map_or("", |(group, _)| group);
    let kind = Kind::from_name(&key.kind).filter(|kind| kind.group() == group)?;
    let namespace = match (kind.is_namespaced(), key.namespace.as_str()) {
        (false, _) => "",
        (true, "") => "default",
        (true, namespace) => namespace,
    };
    Some(ObjectKey::new(kind, namespace, &key.name))
}

/// Reads an object.
pub(super) fn read(path: &Arc<PathBuf>, key: &Key, json: &[u8]) -> Parsed {
    let expected = object_key(key);
    let refuse = |problems: Vec<Problem>, message: &str| {
        let mut parsed = Parsed::default();
        parsed.problems = problems;
        if !message.is_empty() {
            parsed.problems.push(problem(path, key, message));
        }
        if let Some(key) = &expected {
            let rejected = Rejected { key: key.clone(), selector: StringMap::default() };
            parsed.rejected.push(rejected);
        }
        parsed
    };
    let text = match std::str::from_utf8(json) {
        Ok(text) => text,
        Err(_) => return refuse(Vec::new(), "the object is not UTF-8"),
    };
    let parsed = parse(path, text, Format::Json);
    let Some(expected) = &expected else { return parsed };
    if parsed.unreadable || parsed.lost {
        return refuse(parsed.problems, "");
    }
    let keys = parsed.objects.iter().map(|o| o.key());
    let mut keys = keys.chain(parsed.rejected.iter().map(|r| r.key.clone()));
    let (first, second) = (keys.next(), keys.next());
    if first.is_some_and(|key| key != *expected) || second.is_some() {
        return refuse(Vec::new(), "this is another object than its key says");
    }
    parsed
}

fn problem(path: &Arc<PathBuf>, key: &Key, message: &str) -> Problem {
    Problem {
        severity: Severity::Error,
        effect: Effect::Enforced,
        file: Arc::clone(path),
        document: 0,
        line: None,
        object: Some(ObjectRef {
            kind: key.kind.clone(),
            namespace: key.namespace.clone(),
            name: key.name.clone(),
        }),
        field: String::new(),
        message: message.to_owned(),
        allowed: None,
    }
}

/// What the controller is told of the problems of an object.
pub(super) fn faults(problems: &[Problem]) -> Vec<Fault> {
    let errors = problems.iter().filter(|p| p.is_error()).take(MAX_FAULTS);
    errors
        .map(|p| Fault {
            field: p.field.clone(),
            message: p.message.clone(),
            allowed: p.allowed.clone().unwrap_or_default(),
        })
        .collect()
}

/// What the node holds.
#[derive(Debug, Default)]
pub(super) struct Held {
    objects: HashMap<Arc<PathBuf>, Version>,
    bytes: u64,
}

/// One object of it.
#[derive(Clone, Debug)]
pub(super) struct Version {
    /// `Resource.version`.
    pub(super) version: Box<str>,
    /// Bytes of its JSON.
    pub(super) bytes: u32,
}

impl Version {
    /// Of an object.
    ///
    /// # Errors
    /// It is longer than any can be.
    pub(super) fn new(version: &str, bytes: usize) -> Result<Self, String> {
        if version.len() > MAX_VERSION {
            return Err(format!("a version of {} bytes", version.len()));
        }
        if bytes > MAX_OBJECT_BYTES {
            return Err(format!("an object of {bytes} bytes"));
        }
        Ok(Self { version: version.into(), bytes: u32::try_from(bytes).unwrap_or(u32::MAX) })
    }
}

impl Held {
    /// The path as it is held, so that its text is there once.
    pub(super) fn shared(&self, path: PathBuf) -> Arc<PathBuf> {
        let held = self.objects.get_key_value(&path);
        held.map_or_else(|| Arc::new(path), |(path, _)| Arc::clone(path))
    }

    pub(super) fn insert(&mut self, path: Arc<PathBuf>, version: Version) {
        self.bytes += u64::from(version.bytes);
        if let Some(old) = self.objects.insert(path, version) {
            self.bytes -= u64::from(old.bytes);
        }
    }

    /// The version that is held of an object.
    pub(super) fn version(&self, path: &PathBuf) -> Option<&str> {
        self.objects.get(path).map(|version| &*version.version)
    }

    /// The path of an object that is held.
    pub(super) fn path(&self, object: &ObjectKey) -> Option<Arc<PathBuf>> {
        let (kind, group) = (object.kind, object.kind.group());
        let paths = kind.versions().iter().filter_map(|version| {
            let api_version =
                if group.is_empty() { (*version).to_owned() } else { format!("{group}/{version}") };
            let key = Key {
                api_version,
                kind: kind.as_str().to_owned(),
                namespace: (*object.namespace).to_owned(),
                name: (*object.name).to_owned(),
            };
            path_of(&key).ok()
        });
        let mut held = paths.filter_map(|path| self.objects.get_key_value(&path));
        held.next().map(|(path, _)| Arc::clone(path))
    }

    pub(super) fn remove(&mut self, path: &PathBuf) {
        if let Some(old) = self.objects.remove(path) {
            self.bytes -= u64::from(old.bytes);
        }
    }

    /// Whether there is room for as much again as `objects` and `bytes`.
    pub(super) fn has_room(&self, objects: usize, bytes: u64) -> bool {
        self.objects.len() + objects <= MAX_OBJECTS && self.bytes + bytes <= MAX_TOTAL_BYTES
    }

    pub(super) fn len(&self) -> usize {
        self.objects.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Arc<PathBuf>, &Version)> {
        self.objects.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(api_version: &str, kind: &str, namespace: &str, name: &str) -> Key {
        Key {
            api_version: api_version.into(),
            kind: kind.into(),
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    #[test]
    fn keys_become_paths_and_keys_again() {
        for key in [
            key("v1", "Pod", "default", "a"),
            key("v1", "Node", "", "a.example"),
            key("security.istio.io/v1", "AuthorizationPolicy", "istio-system", "deny"),
        ] {
            let path = path_of(&key).unwrap();
            assert_eq!(key_of(&path), Some(key), "{path:?}");
        }
        for bad in [
            key("", "Pod", "default", "a"),
            key("v1", "Pod", "default", ""),
            key("v1", "Pod", "default", ".."),
            key("v1", "Pod", "default", "a/b"),
            key("v1", "Pod", "-", "a"),
            key("../v1", "Pod", "default", "a"),
            key("a/b/c", "Pod", "default", "a"),
            key("v1", "", "default", "a"),
            key("v1", "Pod", "default", "a\0b"),
            key("v1", "Pod", "default", &"a".repeat(300)),
        ] {
            assert!(path_of(&bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_object_is_taken_under_its_own_key_only() {
        let pod = key("v1", "Pod", "default", "a");
        let path = Arc::new(path_of(&pod).unwrap());
        let json = br#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a","namespace":"default"},"spec":{"containers":[]}}"#;
        let good = read(&path, &pod, json);
        assert_eq!((good.objects.len(), good.rejected.len()), (1, 0), "{:?}", good.problems);

        let policy = key("security.istio.io/v1", "AuthorizationPolicy", "default", "deny");
        let path = Arc::new(path_of(&policy).unwrap());
        for (json, what) in [
            (&json[..], "another object"),
            (b"\xff", "UTF-8"),
            (b"{", "JSON"),
            (b"[]", "not a Kubernetes object"),
            (br#"{"apiVersion":"v1","kind":"List","items":[]}"#, ""),
        ] {
            let parsed = read(&path, &policy, json);
            assert!(parsed.objects.is_empty() && !parsed.unreadable && !parsed.lost, "{what}");
            if what.is_empty() {
                continue;
            }
            assert_eq!(Some(&parsed.rejected[0].key), object_key(&policy).as_ref());
            assert!(faults(&parsed.problems).iter().any(|f| f.message.contains(what)), "{what}");
        }
    }

    #[test]
    fn what_is_held_is_counted() {
        let mut held = Held::default();
        let path = held.shared("v1/Pod/default/a".into());
        held.insert(Arc::clone(&path), Version::new("1", 100).unwrap());
        held.insert(held.shared("v1/Pod/default/a".into()), Version::new("2", 50).unwrap());
        assert_eq!((held.len(), held.bytes), (1, 50));
        assert!(held.has_room(1, 1) && !held.has_room(MAX_OBJECTS, 1));
        assert!(!held.has_room(1, MAX_TOTAL_BYTES));
        held.remove(&path);
        assert_eq!((held.len(), held.bytes), (0, 0));
        assert!(Version::new("1", MAX_OBJECT_BYTES + 1).is_err());
    }
}

//! What the CNI plugin and its installer read: lines of the socket, network configurations.
#![expect(clippy::unwrap_used, reason = "a failure here is what the fuzzer looks for")]

use fairlead_cni::install::conflist;
use fairlead_wire::cni::{MAX_IPS, MAX_LINE, Request, read_request, write_line};
use serde_json::Value;

use crate::input;

/// The installer's entry.
const ENTRY: &str = r#"{"type":"fairlead-cni","socket":"/s"}"#;

/// A line is refused, or is a request that is written again as one that reads the same.
pub fn line(data: &[u8]) {
    let Ok(request) = read_request(data) else { return };
    assert!(data.len() <= MAX_LINE);
    if let Request::Add(sandbox) | Request::Check(sandbox) = &request {
        assert!(sandbox.netns.starts_with('/') && !sandbox.netns.contains('\0'));
        assert!(!sandbox.pod_name.contains('/') && !sandbox.pod_namespace.contains('/'));
        assert!(!sandbox.pod_name.is_empty() && sandbox.ips.len() <= MAX_IPS);
    }
    let line = write_line(&request).unwrap();
    assert_eq!(read_request(line.trim_ascii_end()).unwrap(), request);
}

fn plugins(text: &str) -> Vec<Value> {
    let value: Value = serde_json::from_str(text).unwrap();
    value["plugins"].as_array().unwrap().clone()
}

fn is_ours(plugin: &Value) -> bool {
    plugin["type"] == "fairlead-cni"
}

/// What is entered is a list with one entry of ours at its end and all others as they were, and
/// what is left again is the text before.
pub fn conf(data: &[u8]) {
    let Some(text) = input::text(data) else { return };
    if let Ok(list) = conflist::list_of(text) {
        assert_eq!(plugins(&list), [serde_json::from_str::<Value>(text).unwrap()]);
    }
    let Ok(entered) = conflist::enter(text, ENTRY) else { return };
    let Some(entered) = entered else {
        assert!(is_ours(plugins(text).last().unwrap()));
        return;
    };
    let (before, after) = (plugins(text), plugins(&entered));
    let others: Vec<_> = before.iter().filter(|plugin| !is_ours(plugin)).collect();
    assert_eq!(after.iter().filter(|plugin| !is_ours(plugin)).collect::<Vec<_>>(), others);
    assert!(is_ours(after.last().unwrap()) && after.len() == others.len() + 1);
    assert_eq!(conflist::enter(&entered, ENTRY).unwrap(), None);
    let left = conflist::leave(&entered).unwrap().unwrap();
    if others.len() == before.len() {
        assert_eq!(left, text);
    }
}

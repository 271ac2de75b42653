//! Requests to the admin API: the query, and the `Host` that it answers to.

use std::net::IpAddr;

use fairlead_node::admin::fuzz;

use crate::input;

/// Decoding adds nothing that was not there; no name but a loopback one is answered.
pub fn run(data: &[u8]) {
    let Some(text) = input::text(data) else { return };
    let query = fuzz::query(text);
    for pair in text.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let plain = |text: &str| !text.contains(['%', '+']);
        if plain(key) {
            let found = query.get(key).expect("what was written is found");
            let first = text
                .split('&')
                .filter(|pair| !pair.is_empty())
                .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
                .find(|(k, _)| *k == key || !plain(k));
            if first == Some((key, value)) && plain(value) {
                assert_eq!(found, value);
            }
        }
    }
    if fuzz::is_loopback_name(text) {
        let lower = text.to_ascii_lowercase();
        let bracketed = lower.strip_prefix('[').and_then(|rest| rest.split(']').next());
        let name = bracketed.or_else(|| lower.split(':').next()).unwrap_or_default();
        let name = name.split('%').next().unwrap_or_default();
        let loopback = name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        assert!(name == "localhost" || loopback, "{text:?} is not this host");
    }
}

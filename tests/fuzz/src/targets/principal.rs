//! Who a rule is about: principals, namespaces, service accounts, trust domains.

use fairlead_policy::authz::{
    NamespaceMatch, PrincipalMatch, ServiceAccountMatch, TrustDomainMatch,
};
use fairlead_types::{SpiffeId, TrustDomain};

use crate::input;

/// Each form matches what a plain reading of its spelling matches.
pub fn run(data: &[u8]) {
    let Some((pattern, identity)) = input::two_texts(data) else { return };
    let Ok(peer) = identity.trim_end().parse::<SpiffeId>() else { return };
    let principal = peer.principal();
    // A mesh of which the domain is nobody's: then nothing is expanded.
    let foreign = ["no.such.mesh".parse::<TrustDomain>().expect("valid")];

    if let Ok(list) = PrincipalMatch::parse(pattern, &foreign) {
        assert!(!list.is_empty() && list.len() <= 2);
        let any = list.iter().any(|one| one.matches(&peer));
        let expanded = pattern
            .strip_prefix("cluster.local/")
            .filter(|rest| rest.split('/').count() == 4)
            .map(|rest| format!("no.such.mesh/{rest}"));
        let spelled = expanded.as_deref().unwrap_or(pattern);
        assert_eq!(any, wildcard(spelled, &principal), "{pattern:?} on {principal:?}");
    } else {
        assert!(pattern.is_empty() || pattern.starts_with("spiffe://"));
    }
    if let Ok(one) = NamespaceMatch::parse(pattern) {
        assert_eq!(one.matches(peer.namespace()), glob(pattern, peer.namespace()), "{pattern:?}");
    }
    if let Ok(one) = ServiceAccountMatch::parse(pattern, "here") {
        let full =
            if pattern.contains('/') { pattern.to_owned() } else { format!("here/{pattern}") };
        let own = format!("{}/{}", peer.namespace(), peer.service_account());
        assert_eq!(one.matches(&peer), full == own, "{pattern:?}");
    }
    if let Ok(list) = TrustDomainMatch::parse(pattern, &foreign) {
        let domain = peer.trust_domain().as_str();
        let any = list.iter().any(|one| one.matches(&peer));
        assert_eq!(any, wildcard(pattern, domain), "{pattern:?} on {domain:?}");
    }
}

fn wildcard(pattern: &str, text: &str) -> bool {
    match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        (Some(suffix), _) => text.ends_with(suffix),
        (None, Some(prefix)) => text.starts_with(prefix),
        (None, None) => text == pattern,
    }
}

/// `*` stands for any text: by trying, on texts of a bounded length, cell by cell.
fn glob(pattern: &str, text: &str) -> bool {
    let text = text.as_bytes();
    // row[i]: what was read of the pattern matches the first i bytes.
    let mut row = vec![false; text.len() + 1];
    row[0] = true;
    for wanted in pattern.bytes() {
        let mut next = vec![false; text.len() + 1];
        for i in 0..=text.len() {
            next[i] = if wanted == b'*' {
                row[i] || i > 0 && next[i - 1]
            } else {
                i > 0 && row[i - 1] && text[i - 1] == wanted
            };
        }
        row = next;
    }
    row[text.len()]
}

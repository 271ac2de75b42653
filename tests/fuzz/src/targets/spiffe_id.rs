//! Identities of workloads.

use fairlead_types::{SpiffeId, TrustDomain};

use crate::input;

/// There is one spelling of each identity; what is taken is what a plain reading takes.
pub fn run(data: &[u8]) {
    let Some(text) = input::text(data) else { return };
    let parsed = text.parse::<SpiffeId>();
    assert_eq!(parsed.is_ok(), plainly(text), "{parsed:?}");
    match parsed {
        Ok(id) => {
            assert_eq!(id.to_string(), text);
            assert_eq!(format!("spiffe://{}", id.principal()), text);
            let parts =
                SpiffeId::new(id.trust_domain().clone(), id.namespace(), id.service_account());
            assert_eq!(parts, Ok(id));
        }
        Err(error) => assert!(error.to_string().len() <= 2048, "an error repeats all of {text:?}"),
    }
    if let Ok(domain) = text.parse::<TrustDomain>() {
        assert_eq!(domain.as_str(), text);
        let id = SpiffeId::new(domain, "a", "b").expect("these are names");
        assert_eq!(id.to_string().parse(), Ok(id));
    }
}

fn plainly(text: &str) -> bool {
    let parts: Vec<&str> = text.split('/').collect();
    let [scheme, empty, domain, ns, namespace, sa, account] = parts[..] else { return false };
    let of = |text: &str, more: &str, longest: usize| {
        let letter = |c: char| matches!(c, 'a'..='z' | '0'..='9') || more.contains(c);
        (1..=longest).contains(&text.len()) && text.chars().all(letter)
    };
    (scheme, empty, ns, sa) == ("spiffe:", "", "ns", "sa")
        && of(domain, ".-_", 255)
        && of(namespace, ".-", 253)
        && of(account, ".-", 253)
}

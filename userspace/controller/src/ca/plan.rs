//! What the two Secrets mean together.

use std::collections::BTreeMap;

use fairlead_identity::Authority;
use fairlead_identity::ca::{
    CA_CERT, CA_KEY, CERT_CHAIN, CaSet, ROOT_CERT, ROOT_KEY, pem_certificates,
};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;

use super::{Bundle, CACERTS_SECRET, EXTRA_ROOTS, OWN_SECRET};

/// Keys of a Secret as cert-manager makes it; Istio reads it as well.
const TLS_CERT: &str = "tls.crt";
const TLS_KEY: &str = "tls.key";
const TLS_ROOT: &str = "ca.crt";

/// What is to be: who signs, and whom the mesh trusts.
pub(super) struct Plan {
    pub(super) authority: Authority,
    pub(super) bundle: Bundle,
    /// The Secret that the authority is from.
    pub(super) source: &'static str,
}

/// Reads the Secrets. `Ok(None)`: there is no CA at all.
///
/// # Errors
/// The Secret that would sign is not usable: it is never replaced by the other one, which the mesh
/// may not trust.
pub(super) fn plan(cacerts: Option<&Secret>, own: Option<&Secret>) -> Result<Option<Plan>, String> {
    let (source, secret) = match (cacerts, own) {
        (Some(secret), _) => (CACERTS_SECRET, secret),
        (None, Some(secret)) => (OWN_SECRET, secret),
        (None, None) => return Ok(None),
    };
    let error = |e: &dyn std::fmt::Display| format!("Secret {source}: {e}");
    let set = set(secret).map_err(|e| error(&e))?;
    let authority = Authority::new(&set).map_err(|e| error(&e))?;
    let mut roots = authority.roots().to_vec();
    for (name, secret) in [(CACERTS_SECRET, cacerts), (OWN_SECRET, own)] {
        let Some(data) = secret.and_then(|secret| secret.data.as_ref()) else { continue };
        for key in [ROOT_CERT, EXTRA_ROOTS] {
            // The one that signs was read in its own shape.
            if name == source && key == ROOT_CERT {
                continue;
            }
            let Some(ByteString(text)) = data.get(key).filter(|text| !text.0.is_empty()) else {
                continue;
            };
            // A root that is meant to be trusted and is not would break what it was to keep.
            let more = pem_certificates(text).map_err(|e| format!("Secret {name}: {key}: {e}"))?;
            roots.extend(more);
        }
    }
    Ok(Some(Plan { authority, bundle: Bundle::new(roots), source }))
}

/// The texts of a Secret, in either shape.
pub(super) fn set(secret: &Secret) -> Result<CaSet, String> {
    let none = BTreeMap::new();
    let data = secret.data.as_ref().unwrap_or(&none);
    let text = |key: &str| match data.get(key) {
        None => Ok(None),
        Some(ByteString(bytes)) => {
            String::from_utf8(bytes.clone()).map(Some).map_err(|_| format!("{key}: not text"))
        }
    };
    let needed = |key: &str| text(key)?.ok_or_else(|| format!("{key} is missing"));
    let optional = |key: &str| Ok::<_, String>(text(key)?.unwrap_or_default());
    if !data.contains_key(CA_CERT) && data.contains_key(TLS_CERT) {
        let chain = needed(TLS_CERT)?;
        return Ok(CaSet {
            ca_cert: chain.clone(),
            ca_key: needed(TLS_KEY)?,
            root_cert: needed(TLS_ROOT)?,
            cert_chain: chain,
            root_key: String::new(),
        });
    }
    Ok(CaSet {
        ca_cert: needed(CA_CERT)?,
        ca_key: needed(CA_KEY)?,
        root_cert: needed(ROOT_CERT)?,
        cert_chain: optional(CERT_CHAIN)?,
        root_key: optional(ROOT_KEY)?,
    })
}

/// The data of a Secret that holds the set.
pub(super) fn data(set: CaSet) -> BTreeMap<String, ByteString> {
    let CaSet { ca_cert, ca_key, root_cert, cert_chain, root_key } = set;
    [
        (CA_CERT, ca_cert),
        (CA_KEY, ca_key),
        (ROOT_CERT, root_cert),
        (CERT_CHAIN, cert_chain),
        (ROOT_KEY, root_key),
    ]
    .map(|(key, text)| (key.to_owned(), ByteString(text.into_bytes())))
    .into()
}

#[cfg(test)]
mod tests {
    use fairlead_types::TrustDomain;

    use super::*;

    fn new() -> CaSet {
        CaSet::generate(&TrustDomain::default()).expect("a CA")
    }

    fn secret(set: &CaSet) -> Secret {
        Secret { data: Some(data(set.clone())), ..Secret::default() }
    }

    fn with(mut secret: Secret, key: &str, text: &str) -> Secret {
        let data = secret.data.get_or_insert_default();
        data.insert(key.to_owned(), ByteString(text.as_bytes().to_vec()));
        secret
    }

    fn made(cacerts: Option<&Secret>, own: Option<&Secret>) -> Plan {
        plan(cacerts, own).expect("usable").expect("a CA")
    }

    #[test]
    fn own_roots_sign_and_the_root_made_here_stays_trusted() {
        let (mine, theirs) = (new(), new());
        assert!(plan(None, None).expect("usable").is_none());
        let own = secret(&mine);
        let alone = made(None, Some(&own));
        assert_eq!((alone.source, alone.bundle.roots.len()), (OWN_SECRET, 1));
        let both = made(Some(&secret(&theirs)), Some(&own));
        assert_eq!((both.source, both.bundle.roots.len()), (CACERTS_SECRET, 2));
        assert_eq!(both.authority.roots(), Authority::new(&theirs).expect("usable").roots());
        assert!(alone.authority.verifies_to(&both.bundle.roots));
        assert!(!both.authority.verifies_to(&alone.bundle.roots));
    }

    #[test]
    fn extra_roots_are_trusted_and_counted_once() {
        let (a, b) = (new(), new());
        let extra = format!("{}{}", a.root_cert, b.root_cert);
        let plan = made(None, Some(&with(secret(&a), EXTRA_ROOTS, &extra)));
        assert_eq!(plan.bundle.roots.len(), 2);
        assert_eq!(plan.bundle.pem.matches("BEGIN").count(), 2);
        let empty = made(None, Some(&with(secret(&a), EXTRA_ROOTS, "")));
        assert_eq!(empty.bundle.roots.len(), 1);
    }

    #[test]
    fn a_broken_secret_is_named_and_never_passed_over() {
        let (a, b) = (new(), new());
        let own = secret(&a);
        let broken = with(secret(&b), CA_KEY, "nonsense");
        let error = plan(Some(&broken), Some(&own)).err().expect("an error");
        assert!(error.contains("Secret cacerts: ca-key.pem"), "{error}");
        assert!(!error.contains("nonsense"));
        let error = plan(Some(&Secret::default()), Some(&own)).err().expect("an error");
        assert!(error.contains("is missing"), "{error}");
        let extra = with(secret(&a), EXTRA_ROOTS, "nonsense");
        let error = plan(None, Some(&extra)).err().expect("an error");
        assert!(error.contains(EXTRA_ROOTS), "{error}");
    }

    #[test]
    fn the_shape_of_cert_manager_is_read() {
        let a = new();
        let mut tls = with(Secret::default(), TLS_CERT, &a.ca_cert);
        tls = with(tls, TLS_KEY, &a.ca_key);
        tls = with(tls, TLS_ROOT, &a.root_cert);
        assert_eq!(made(Some(&tls), None).bundle.roots.len(), 1);
    }
}

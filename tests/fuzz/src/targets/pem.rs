//! PEM files of a CA directory.

use fairlead_identity::{TrustBundle, fuzz};
use fairlead_types::TrustDomain;

/// What is read is really there, and a bundle is made of it or refused.
pub fn run(data: &[u8]) {
    match fuzz::pem_certificates(data) {
        Ok(list) => {
            assert!(!list.is_empty() && list.iter().map(|c| c.len()).sum::<usize>() <= data.len());
            match TrustBundle::new(&list, &TrustDomain::default(), &[]) {
                Ok(bundle) => assert!(bundle.accepts(&TrustDomain::default())),
                Err(error) => assert!(!error.to_string().is_empty()),
            }
        }
        Err(error) => assert!(!error.is_empty()),
    }
}

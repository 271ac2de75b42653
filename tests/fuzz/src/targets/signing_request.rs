//! Signing requests as strangers send them to the CA.

use fairlead_identity::SigningRequest;
use fairlead_identity::ca::certificate_pem;

/// Refused in words, or taken as it is: then it is taken as PEM too, and not with a byte more, a
/// byte less or a bit of its signed part changed.
pub fn run(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data)
        && let Err(error) = SigningRequest::from_pem(text)
    {
        assert!(!error.to_string().is_empty());
    }
    let request = match SigningRequest::from_der(data) {
        Ok(request) => request,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let pem = certificate_pem(data).replace("CERTIFICATE", "CERTIFICATE REQUEST");
    let again = SigningRequest::from_pem(&pem).expect("the same as PEM");
    assert_eq!(again.uris(), request.uris());
    assert!(SigningRequest::from_pem(&format!("{pem}{pem}")).is_err(), "two were taken for one");
    let mut longer = data.to_vec();
    longer.push(0);
    assert!(SigningRequest::from_der(&longer).is_err(), "trailing bytes were taken");
    assert!(SigningRequest::from_der(&data[..data.len() - 1]).is_err(), "a cut one was taken");
    // Within the signed part: behind two headers, before algorithm and signature.
    let at = data.len() / 4;
    let mut changed = data.to_vec();
    changed[at] ^= 1;
    assert!(SigningRequest::from_der(&changed).is_err(), "byte {at} changed, and nobody noticed");
}

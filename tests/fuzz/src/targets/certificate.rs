//! A peer's leaf certificate.

use fairlead_identity::PeerSvid;

/// An identity comes only from the certificate's own text, and from nothing that has more after
/// it; everything else is refused in words.
pub fn run(data: &[u8]) {
    match PeerSvid::from_der(data) {
        Ok(svid) => {
            let id = svid.id.to_string();
            assert!(data.windows(id.len()).any(|window| window == id.as_bytes()), "{id}");
            assert!(svid.serial.bytes().all(|b| b.is_ascii_hexdigit()) && !svid.serial.is_empty());
            let mut longer = data.to_vec();
            longer.push(0);
            assert!(PeerSvid::from_der(&longer).is_err(), "trailing bytes were taken");
            assert!(PeerSvid::from_der(&data[..data.len() - 1]).is_err(), "a cut one was taken");
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

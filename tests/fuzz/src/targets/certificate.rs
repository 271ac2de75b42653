//! A peer's leaf certificate.

use fairlead_identity::PeerSvid;

/// id-ce-subjectAltName and id-ce-basicConstraints (RFC 5280 section 4.2.1).
const DECISIVE: [&[u8]; 2] = [b"\x55\x1d\x11", b"\x55\x1d\x13"];

/// An identity comes only from the certificate's own text, and from nothing that has more after
/// it or says something twice; everything else is refused in words.
pub fn run(data: &[u8]) {
    match PeerSvid::from_der(data) {
        Ok(svid) => {
            let id = svid.id.to_string();
            assert!(data.windows(id.len()).any(|window| window == id.as_bytes()), "{id}");
            for oid in DECISIVE {
                let times = extensions(data).filter(|found| *found == oid).count();
                assert!(times <= 1, "an extension is there {times} times");
            }
            assert!(svid.serial.bytes().all(|b| b.is_ascii_hexdigit()) && !svid.serial.is_empty());
            let mut longer = data.to_vec();
            longer.push(0);
            assert!(PeerSvid::from_der(&longer).is_err(), "trailing bytes were taken");
            assert!(PeerSvid::from_der(&data[..data.len() - 1]).is_err(), "a cut one was taken");
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// The object identifiers of the extensions.
fn extensions(certificate: &[u8]) -> impl Iterator<Item = &[u8]> {
    let list = elements(certificate)
        .next()
        .and_then(|(_, certificate)| elements(certificate).next())
        .and_then(|(_, body)| elements(body).find(|(tag, _)| *tag == 0xa3))
        .and_then(|(_, wrapped)| elements(wrapped).next())
        .map_or(&[][..], |(_, list)| list);
    elements(list).filter_map(|(_, extension)| Some(elements(extension).next()?.1))
}

/// The elements of DER that lie side by side: tag and content.
fn elements(der: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    let mut rest = der;
    std::iter::from_fn(move || {
        let [tag, length, after @ ..] = rest else { return None };
        let long = usize::from(length & 0x7f);
        let (length, after) = if *length < 0x80 {
            (usize::from(*length), after)
        } else {
            let (bytes, after) = after.split_at_checked(long)?;
            (bytes.iter().fold(0_usize, |n, b| n.wrapping_shl(8) | usize::from(*b)), after)
        };
        let (content, after) = after.split_at_checked(length)?;
        rest = after;
        Some((*tag, content))
    })
}

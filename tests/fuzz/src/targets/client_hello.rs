//! The look at a ClientHello that decides which way an inbound connection goes.

use fairlead_proxy::transport::{MAX_CLIENT_HELLO, Peek, Wire, is_client_hello_with_alpn};

/// A verdict on a beginning stands when more arrives, agrees with a plain reading of the whole,
/// and is there at the latest when everything that may be looked at is.
pub fn run(data: &[u8]) {
    let verdict = is_client_hello_with_alpn(data);
    for end in cuts(data.len()) {
        let early = is_client_hello_with_alpn(&data[..end]);
        assert!(
            early == Peek::NeedMore || early == verdict,
            "{early:?} of the first {end} bytes became {verdict:?}"
        );
    }
    if data.len() >= MAX_CLIENT_HELLO {
        assert_ne!(verdict, Peek::NeedMore);
    }
    if let Peek::Mesh(wire) = verdict {
        let plain = plainly(&data[..data.len().min(MAX_CLIENT_HELLO)]);
        let offered = plain.expect("a hello that is the mesh's can be read plainly");
        let native = offered.iter().any(|name| name == b"fairlead/1");
        match wire {
            Wire::Native => assert!(native, "{offered:?}"),
            Wire::Hbone => assert_eq!(offered, [b"h2"]),
        }
    } else if let Some(offered) = plainly(&data[..data.len().min(MAX_CLIENT_HELLO)]) {
        assert!(!offered.iter().any(|name| name == b"fairlead/1"), "{verdict:?} of {offered:?}");
    }
}

/// Where to cut: everywhere in short inputs, here and there in long ones.
pub(super) fn cuts(len: usize) -> impl Iterator<Item = usize> {
    (0..len).step_by(len / 32 + 1)
}

/// The ALPN of a hello by first putting its records together. Whatever the bytes break off in
/// after the ALPN does not matter, as in the parser.
fn plainly(data: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut message = Vec::new();
    let mut rest = data;
    while let [22, 3, _, high, low, after @ ..] = rest {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        if length == 0 || length > 1 << 14 {
            break;
        }
        let part = &after[..length.min(after.len())];
        message.extend_from_slice(part);
        rest = &after[part.len()..];
    }
    let mut at = 0;
    let mut take = |n: usize| {
        let piece = message.get(at..at + n)?;
        at += n;
        Some(piece)
    };
    let number = |bytes: &[u8]| bytes.iter().fold(0, |n, b| n << 8 | usize::from(*b));
    if take(1)? != [1] {
        return None;
    }
    take(3 + 2 + 32)?;
    let session = number(take(1)?);
    if session > 32 {
        return None;
    }
    take(session)?;
    let suites = number(take(2)?);
    take(suites)?;
    let compression = number(take(1)?);
    take(compression)?;
    let mut left = number(take(2)?);
    while left >= 4 {
        let (kind, length) = (number(take(2)?), number(take(2)?));
        left = left.checked_sub(4 + length)?;
        if kind != 16 {
            take(length)?;
            continue;
        }
        let mut list = number(take(2)?);
        if list + 2 != length {
            return None;
        }
        let mut names: Vec<Vec<u8>> = Vec::new();
        while list > 0 {
            let n = number(take(1)?);
            list = list.checked_sub(1 + n)?;
            if n == 0 {
                return None;
            }
            names.push(take(n)?.to_vec());
            // The parser says what it knows as soon as it knows it.
            if names.last().is_some_and(|name| name == b"fairlead/1") {
                break;
            }
        }
        return Some(names);
    }
    None
}

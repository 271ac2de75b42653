//! The peek parser against real ClientHellos, their prefixes, their fragments, and noise.

use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use super::{MAX_CLIENT_HELLO, Peek, Wire, is_client_hello_with_alpn as peek};

/// The ClientHello that rustls writes for these protocols.
fn hello(protocols: &[&[u8]], server: &str) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|p| p.to_vec()).collect();
    let name = ServerName::try_from(server.to_owned()).unwrap();
    let mut connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    connection.write_tls(&mut bytes).unwrap();
    bytes
}

/// The same message spread over records of `size` bytes.
fn fragmented(record: &[u8], size: usize) -> Vec<u8> {
    record[5..]
        .chunks(size)
        .flat_map(|part| {
            let length = u16::try_from(part.len()).unwrap().to_be_bytes();
            [&[22, 3, 1][..], &length, part].concat()
        })
        .collect()
}

#[test]
fn real_hellos_are_told_apart() {
    for (protocols, expected) in [
        (&[&b"fairlead/1"[..]][..], Peek::Mesh(Wire::Native)),
        (&[b"h2", b"fairlead/1"], Peek::Mesh(Wire::Native)),
        (&[b"h2"], Peek::Mesh(Wire::Hbone)),
        (&[b"h2", b"http/1.1"], Peek::OtherTls),
        (&[b"fairlead/2"], Peek::OtherTls),
        (&[b"fairlead/11"], Peek::OtherTls),
        (&[b"fairlead/"], Peek::OtherTls),
        (&[], Peek::OtherTls),
    ] {
        let bytes = hello(protocols, "reviews.default.svc.cluster.local");
        assert_eq!(peek(&bytes), expected, "{protocols:?}");
        for size in [2, 7, 64, 500] {
            assert_eq!(peek(&fragmented(&bytes, size)), expected, "{protocols:?} by {size}");
        }
    }
}

#[test]
fn a_prefix_never_decides_otherwise_than_the_whole() {
    for protocols in [&[&b"fairlead/1"[..]][..], &[b"h2"], &[b"h2", b"http/1.1"], &[]] {
        let bytes = hello(protocols, "a.example");
        let whole = peek(&bytes);
        for end in 0..bytes.len() {
            let early = peek(&bytes[..end]);
            assert!(early == Peek::NeedMore || early == whole, "{end}: {early:?}, {whole:?}");
        }
    }
}

#[test]
fn other_beginnings_are_not_tls() {
    for text in [
        &b"GET / HTTP/1.1\r\n"[..],
        b"PRI * HTTP/2.0\r\n",
        b"\x17\x03\x03\x00\x05",
        b"\x16\x02\x00\x00\x05",
        b"SSH-2.0-x",
        b"\0",
    ] {
        assert_eq!(peek(text), Peek::NotTls, "{text:?}");
    }
    assert_eq!(peek(b""), Peek::NeedMore);
    assert_eq!(peek(b"\x16"), Peek::NeedMore);
}

#[test]
fn a_hello_that_hides_its_alpn_behind_padding_is_not_ours() {
    // An extension of 16 KiB in front: within the bound nothing can be told, and then it is.
    let mut body = vec![3, 3];
    body.extend([0; 32]);
    body.extend([0, 0, 2, 0x13, 1, 1, 0]);
    body.extend((16_000_u16 + 4 + 17).to_be_bytes());
    body.extend([0, 21]);
    body.extend(16_000_u16.to_be_bytes());
    body.extend(vec![0; 16_000]);
    body.extend([0, 16, 0, 13, 0, 11, 10]);
    body.extend(b"fairlead/1");
    let mut message = vec![1, 0];
    message.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
    message.extend(body);
    let mut record = vec![22, 3, 1];
    record.extend(u16::try_from(message.len()).unwrap().to_be_bytes());
    record.extend(message);
    assert_eq!(peek(&record[..MAX_CLIENT_HELLO - 1]), Peek::NeedMore);
    assert_eq!(peek(&record[..MAX_CLIENT_HELLO]), Peek::OtherTls);
    assert_eq!(peek(&record), Peek::OtherTls);
}

/// A small generator with a fixed seed: a failure can be repeated.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).unwrap()
    }
}

/// Mutated hellos and noise: no panic, no loop, and whatever is called a mesh session contains
/// the name that makes it one.
#[test]
fn mutations_and_noise() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let seeds = [
        hello(&[b"fairlead/1"], "a.example"),
        hello(&[b"h2"], "a.example"),
        fragmented(&hello(&[b"h2", b"fairlead/1"], "a.example"), 40),
        hello(&[], "a.example"),
        vec![22, 3, 1, 0, 1, 1],
    ];
    for _ in 0..200_000 {
        let mut bytes = seeds[random.below(seeds.len())].clone();
        for _ in 0..=random.below(6) {
            let at = random.below(bytes.len());
            match random.below(5) {
                0 => bytes[at] = 0xff,
                1 => bytes[at] = 0,
                2 => bytes[at] ^= 1 << random.below(8),
                3 => {
                    bytes.remove(at);
                }
                _ => bytes.insert(at, random.next().to_le_bytes()[0]),
            }
            if bytes.is_empty() {
                bytes.push(22);
            }
        }
        bytes.truncate(1 + random.below(bytes.len()));
        match peek(&bytes) {
            Peek::Mesh(Wire::Native) => {
                // Fragments may part the name; whole records may not.
                let joined: Vec<u8> = unfragmented(&bytes);
                assert!(joined.windows(10).any(|w| w == b"fairlead/1"));
            }
            Peek::Mesh(Wire::Hbone) => {
                assert!(unfragmented(&bytes).windows(3).any(|w| w == b"\x02h2"));
            }
            Peek::NotTls => assert!(bytes[0] != 22 || bytes.get(1).is_some_and(|v| *v != 3)),
            Peek::NeedMore | Peek::OtherTls => {}
        }
    }
}

fn unfragmented(mut bytes: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    while let Some((header, rest)) = bytes.split_at_checked(5) {
        let length = usize::from(u16::from_be_bytes([header[3], header[4]])).min(rest.len());
        message.extend_from_slice(&rest[..length]);
        bytes = &rest[length..];
    }
    message
}

#[test]
fn the_bound_is_generous() {
    let bytes = hello(&[b"fairlead/1"], "reviews.default.svc.cluster.local");
    assert!(bytes.len() < MAX_CLIENT_HELLO / 3, "{}", bytes.len());
}

//! What is an SVID and what is not.

use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, SanType};

use super::*;

fn leaf(names: &[SanType], is_ca: IsCa) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.subject_alt_names = names.to_vec();
    params.is_ca = is_ca;
    params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

const GOOD: &str = "spiffe://cluster.local/ns/default/sa/reviews";

#[test]
fn exactly_one_uri_of_the_mesh_form() {
    let dns = SanType::DnsName("reviews".try_into().unwrap());
    let good = PeerSvid::from_der(&leaf(&[dns.clone(), uri(GOOD)], IsCa::NoCa)).unwrap();
    assert_eq!(good.id.to_string(), GOOD);
    assert!(!good.serial.is_empty());
    for (names, expected) in [
        (vec![], 0),
        (vec![dns], 0),
        (vec![uri(GOOD), uri("spiffe://cluster.local/ns/default/sa/admin")], 2),
        (vec![uri(GOOD), uri("https://example.com")], 2),
    ] {
        let result = PeerSvid::from_der(&leaf(&names, IsCa::NoCa));
        assert_eq!(result, Err(SvidError::UriNames(expected)));
    }
    for bad in ["https://cluster.local/ns/a/sa/b", "spiffe://cluster.local/ns/a/sa/b/c"] {
        let result = PeerSvid::from_der(&leaf(&[uri(bad)], IsCa::NoCa));
        assert!(matches!(result, Err(SvidError::Identity(_))), "{bad}: {result:?}");
    }
}

#[test]
fn a_ca_does_not_speak_for_a_workload() {
    let ca = leaf(&[uri(GOOD)], IsCa::Ca(BasicConstraints::Unconstrained));
    assert_eq!(PeerSvid::from_der(&ca), Err(SvidError::IsCa));
}

#[test]
fn broken_bytes_are_an_error() {
    let good = leaf(&[uri(GOOD)], IsCa::NoCa);
    for end in 0..good.len() {
        assert!(PeerSvid::from_der(&good[..end]).is_err(), "{end} of {} bytes", good.len());
    }
    let mut long = good;
    long.push(0);
    assert!(matches!(PeerSvid::from_der(&long), Err(SvidError::Malformed(_))));
}

#[test]
fn fingerprints_are_sha256_in_hexadecimal() {
    // FIPS 180-4, the example "abc".
    let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(&*fingerprint(b"abc"), abc);
}

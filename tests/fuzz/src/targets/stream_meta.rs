//! What a stream says of its origin: `forwarded`, addresses, `baggage`.

use std::net::SocketAddr;

use fairlead_proxy::transport::{baggage, fuzz};
use http::header::{FORWARDED, HeaderMap, HeaderName, HeaderValue};

/// What is written is read back; what is read from anybody is an address or nothing; a header
/// that is there twice names nobody.
pub fn run(data: &[u8]) {
    let client = HeaderName::from_static("fairlead-client");
    let Ok(value) = HeaderValue::from_bytes(data) else { return };
    let mut headers = HeaderMap::new();
    headers.insert(FORWARDED, value.clone());
    headers.insert(client.clone(), value.clone());
    let (claimed, host) = fuzz::parse_forwarded(&headers);
    if let Some(host) = &host {
        assert!(host.len() <= data.len());
    }
    let parsed = fuzz::parse_address(&headers, &client);
    let plainly = value.to_str().ok().and_then(|text| text.parse::<SocketAddr>().ok());
    assert_eq!(parsed, plainly);
    headers.append(client.clone(), value.clone());
    assert_eq!(fuzz::parse_address(&headers, &client), None, "of two, neither is believed");

    for address in claimed.into_iter().chain(parsed) {
        // A service that people can name: no separators of the header's own.
        let service = host.as_ref().filter(|h| {
            h.to_str().is_ok_and(|h| !h.is_empty() && !h.contains([';', ',', '"', '=', ' ', '\t']))
        });
        let written = fuzz::forwarded(address, service).expect("an address is expressible");
        let mut again = HeaderMap::new();
        again.insert(FORWARDED, written);
        assert_eq!(fuzz::parse_forwarded(&again), (Some(address), service.cloned()));
    }

    if let Ok(text) = value.to_str() {
        let mut words = text.split(',');
        let mut word = || words.next().unwrap_or_default();
        let (cluster, namespace) = (word(), word());
        let written = baggage(cluster, namespace, "deployment", word(), word(), word());
        let written = written.expect("texts of headers make a header");
        let mut parts = written.to_str().unwrap_or_default().split(',');
        assert_eq!(parts.next(), Some(&*format!("k8s.cluster.name={cluster}")));
        assert_eq!(parts.next(), Some(&*format!("k8s.namespace.name={namespace}")));
        assert_eq!(parts.count(), 3, "nothing can be slipped in");
    }
}

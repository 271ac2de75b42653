//! Headers: what is stripped, what is parsed, what round-trips.

use super::*;

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in pairs {
        map.append(*name, value.parse().unwrap());
    }
    map
}

#[test]
fn forwarded_in_the_forms_that_proxies_write() {
    for (text, client, host) in [
        ("for=10.0.0.1", Some("10.0.0.1:0"), None),
        ("for=10.0.0.1:4321", Some("10.0.0.1:4321"), None),
        ("for=10.0.0.1:4321;host=a.b", Some("10.0.0.1:4321"), Some("a.b")),
        ("For=\"[2001:db8::1]:4711\"", Some("[2001:db8::1]:4711"), None),
        ("for=\"[2001:db8::1]\"", Some("[2001:db8::1]:0"), None),
        ("for=2001:db8::1", Some("[2001:db8::1]:0"), None),
        ("for=10.0.0.1, for=10.0.0.2", Some("10.0.0.1:0"), None),
        ("proto=http; host=\"x:80\" ;for=_hidden", None, Some("x:80")),
        ("", None, None),
        (";;==", None, None),
    ] {
        let (c, h) = parse_forwarded(&headers(&[("forwarded", text)]));
        assert_eq!(c, client.map(|c| c.parse().unwrap()), "{text}");
        assert_eq!(h.as_ref().map(|h| h.to_str().unwrap()), host, "{text}");
    }
    let client = ClientAddr("[2001:db8::1]:80".parse().unwrap());
    let written = forwarded(client, None).unwrap();
    assert_eq!(
        parse_forwarded(&headers(&[("forwarded", written.to_str().unwrap())])).0,
        Some(client.0)
    );
}

#[test]
fn addresses_are_single_and_exact() {
    assert!(parse_address(&headers(&[("fairlead-client", "1.2.3.4:5")]), &CLIENT).is_some());
    for bad in ["1.2.3.4", "1.2.3.4:", "a:1", " 1.2.3.4:5", "1.2.3.4:5,1.2.3.4:6", "1.2.3.4:99999"]
    {
        assert!(parse_address(&headers(&[("fairlead-client", bad)]), &CLIENT).is_none(), "{bad}");
    }
    let two = headers(&[("fairlead-client", "1.2.3.4:5"), ("fairlead-client", "1.2.3.4:6")]);
    assert!(parse_address(&two, &CLIENT).is_none());
}

#[test]
fn hop_by_hop_goes_and_te_trailers_stays() {
    let mut map = headers(&[
        ("connection", "close, X-Mine, te"),
        ("x-mine", "1"),
        ("te", "gzip, trailers"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "h2c"),
        ("proxy-connection", "keep-alive"),
        ("keep-alive", "300"),
        ("x-other", "1"),
    ]);
    strip_hop_by_hop(&mut map);
    let mut left: Vec<_> = map.iter().map(|(n, v)| (n.as_str(), v.to_str().unwrap())).collect();
    left.sort_unstable();
    assert_eq!(left, [("te", "trailers"), ("x-other", "1")]);
}

#[test]
fn own_names_go_however_many_there_are() {
    let mut map = headers(&[
        ("fairlead-client", "a"),
        ("fairlead-client", "b"),
        ("fairlead-x", "c"),
        ("fairleadx", "stays"),
    ]);
    strip(&mut map);
    assert_eq!(map.len(), 1);
    assert!(map.contains_key("fairleadx"));
}

#[test]
fn upgrades_carry_one_token_and_get_or_connect() {
    let dst = "10.0.0.1:80".parse().unwrap();
    let meta = StreamMeta {
        client: ClientAddr("10.0.0.2:1".parse().unwrap()),
        baggage: None,
        service: None,
    };
    let build = |method: Method, upgrade: Option<&str>| {
        let mut request = Request::new(());
        *request.method_mut() = method;
        if let Some(upgrade) = upgrade {
            request.headers_mut().insert("upgrade", upgrade.parse().unwrap());
        }
        outgoing_upgrade(request, dst, &meta).map(|(_, protocol)| protocol)
    };
    assert_eq!(build(Method::GET, Some("websocket")).unwrap(), "websocket");
    assert!(build(Method::POST, Some("websocket")).is_err());
    assert!(build(Method::GET, None).is_err());
    assert!(build(Method::GET, Some("h2c, websocket")).is_err());
    assert!(build(Method::GET, Some(CONNECT_PROTOCOL)).is_err());
    assert!(build(Method::CONNECT, None).is_err());
}

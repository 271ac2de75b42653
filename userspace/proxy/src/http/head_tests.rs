use super::*;

/// Scans in pieces of `size`; the index that the verdict is about, in all bytes.
fn scan(text: &[u8], size: usize) -> Found {
    let mut scan = HeadScan::new();
    for (n, piece) in text.chunks(size).enumerate() {
        match scan.scan(piece) {
            Found::Nothing => {}
            Found::MaySwitch(at) => return Found::MaySwitch(n * size + at),
            Found::Refused(at, why) => return Found::Refused(n * size + at, why),
        }
    }
    Found::Nothing
}

/// The verdict, which does not depend on how the bytes come.
fn judge(text: &str) -> Found {
    let whole = scan(text.as_bytes(), text.len());
    for size in 1..text.len() {
        assert_eq!(scan(text.as_bytes(), size), whole, "{text:?} in pieces of {size}");
    }
    whole
}

fn refused(text: &str) -> Option<(&str, Ambiguous)> {
    match judge(text) {
        Found::Refused(at, why) => Some((&text[..at], why)),
        _ => None,
    }
}

const OK: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

#[test]
fn unambiguous_requests_pass() {
    for text in [
        OK.to_owned(),
        OK.repeat(3),
        format!("\r\n{OK}"),
        format!("POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\na\nb\nc{OK}"),
        format!("POST / HTTP/1.1\r\ncontent-length:5 \r\nContent-Length: 5\r\n\r\na\nb\nc{OK}"),
        format!("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\na\nb\r\n0\r\n\r\n{OK}"),
        format!(
            "POST / HTTP/1.1\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\n\r\n\
             A;x=y\r\n0123\n567\r\n\r\n00\r\nX-Sum: 1\r\n\r\n{OK}"
        ),
        format!("PUT / HTTP/1.1\r\nX: {}\r\nContent-Length: 2\r\n\r\n\n\n{OK}", "a".repeat(300)),
        "GET /not-complete HTTP/1.1\r\nContent-Le".to_owned(),
    ] {
        assert_eq!(judge(&text), Found::Nothing, "{text:?}");
    }
}

#[test]
fn two_readings_are_refused_where_they_begin() {
    use Ambiguous::{BadLength, BareLf, TwoLengths};
    let cases = [
        ("GET / HTTP/1.1\nHost: a\r\n\r\n", "GET / HTTP/1.1", BareLf),
        ("GET / HTTP/1.1\r\nHost: a\n\r\n", "GET / HTTP/1.1\r\nHost: a", BareLf),
        ("GET / HTTP/1.1\r\nHost: a\r\n\n", "GET / HTTP/1.1\r\nHost: a\r\n", BareLf),
        ("\nGET / HTTP/1.1\r\n", "", BareLf),
        (
            "P / HTTP/1.1\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG",
            "P / HTTP/1.1\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r",
            TwoLengths,
        ),
        (
            "P / HTTP/1.1\r\ntransfer-ENCODING:xchunked\r\nX: y\r\ncontent-length:\t0\r\n\r\n",
            "P / HTTP/1.1\r\ntransfer-ENCODING:xchunked\r\nX: y\r\ncontent-length:\t0\r",
            TwoLengths,
        ),
        (
            "P / HTTP/1.1\r\nContent-Length: +5\r\n",
            "P / HTTP/1.1\r\nContent-Length: +5\r",
            BadLength,
        ),
        (
            "P / HTTP/1.1\r\nContent-Length: 5, 5\r\n",
            "P / HTTP/1.1\r\nContent-Length: 5, 5\r",
            BadLength,
        ),
    ];
    for (text, before, why) in cases {
        assert_eq!(refused(text), Some((before, why)), "{text:?}");
    }
    // Behind a body, and in what frames one.
    let chunked = "P / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
    for (body, why) in [
        ("2\r\nab\r\n0\r\n\r\nGET / HTTP/1.1\n", BareLf),
        ("2\nab\r\n", BareLf),
        ("zz\r\n", BadLength),
        ("fffffffffffffffff\r\n", BadLength),
        ("0\r\nx: y\n\r\n", BareLf),
    ] {
        let text = format!("{chunked}{body}");
        assert_eq!(refused(&text).map(|(_, why)| why), Some(why), "{text:?}");
    }
    let text = format!("P / HTTP/1.1\r\nContent-Length: 3\r\n\r\na\nb{}", OK.replace("\r\n", "\n"));
    assert_eq!(refused(&text).map(|(_, why)| why), Some(BareLf));
}

#[test]
fn a_switch_is_told_at_the_end_of_its_head() {
    for text in [
        "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n",
        "GET / HTTP/1.1\r\nupgrade: websocket\r\nConnection: upgrade\r\n\r\n",
    ] {
        assert_eq!(judge(&format!("{text}\x16\n\n")), Found::MaySwitch(text.len()));
    }
    assert_eq!(judge("CONNECTED / HTTP/1.1\r\n\r\n"), Found::Nothing);
}

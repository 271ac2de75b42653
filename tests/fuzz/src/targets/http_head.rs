//! Heads of HTTP/1 as they come over the wire.

use fairlead_proxy::http_fuzz as http1;

/// The verdict does not depend on how the bytes come, and no head passes that has two readings.
pub fn run(data: &[u8]) {
    let Some((&size, data)) = data.split_first() else { return };
    let whole = http1::scan(std::iter::once(data));
    for size in [1, 2, usize::from(size) + 1] {
        assert_eq!(http1::scan(data.chunks(size)), whole, "in pieces of {size}");
    }
    let start = 2 * data.chunks(2).take_while(|line| line == b"\r\n").count();
    let end = data[start..].windows(4).position(|w| w == b"\r\n\r\n");
    let Some(end) = end.map(|end| start + end + 4) else { return };
    if whole.is_some_and(|(at, why)| why.is_some() && at < end) {
        return;
    }
    // The plain reading of the first head.
    let head = &data[start..end];
    let bare = |at: &usize| head[*at] == b'\n' && (*at == 0 || head[at - 1] != b'\r');
    assert_eq!((0..head.len()).find(bare), None, "a bare LF passed");
    let text = String::from_utf8_lossy(head).to_ascii_lowercase();
    let said = |name: &str| text.lines().skip(1).any(|line| line.starts_with(name));
    assert!(!(said("content-length:") && said("transfer-encoding:")), "two lengths passed");
}

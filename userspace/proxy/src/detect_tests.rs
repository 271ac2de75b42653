//! Tests of the detection: a table, and seeded random input for what no table has.

use super::*;

/// A small generator (xorshift64*), so that a failure can be repeated from its seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).unwrap()
    }
}

#[test]
fn table() {
    let long = format!("GET /{} ", "a".repeat(SNIFF_MAX));
    let long_word = format!("GET {} ", "a".repeat(SNIFF_MAX));
    for (bytes, want) in [
        (&b""[..], Sniff::NeedMore),
        (b"G", Sniff::NeedMore),
        (b"GET / HTTP/1.1\r\n", Sniff::Http1),
        (b"GET / HTTP/1.0\n", Sniff::Http1),
        (b"M-SEARCH * HTTP/1.1\r\n", Sniff::Http1),
        (b"CONNECT a:1 HTTP/1.1\r\n", Sniff::Http1),
        (b"GET / HTTP/1.1", Sniff::NeedMore),
        // Redis inline command, HTTP/0.9, memcached, RESP, SMTP, SSH.
        (b"GET key\r\n", Sniff::Other),
        (b"GET /\r\n", Sniff::Other),
        (b"get key\r\n", Sniff::Other),
        (b"*1\r\n$4\r\nPING\r\n", Sniff::Other),
        (b"EHLO a b\r\n", Sniff::Other),
        (b"SSH-2.0-OpenSSH\r\n", Sniff::Other),
        (b"\0\0\0\x08\x04\xd2\x16\x2f", Sniff::Other),
        (b"GET \x01 HTTP/1.1", Sniff::Other),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0", Sniff::Http2),
        (b"PRI * HTTP/2.0\r\n\r\nSM", Sniff::NeedMore),
        (b"PRI * HTTP/2.0\r\n\r\nXX", Sniff::Other),
        (b"\x16\x03\x01", Sniff::Tls),
        (b"\x16\x04\x01", Sniff::Other),
        (long.as_bytes(), Sniff::Http1),
        (long_word.as_bytes(), Sniff::Other),
    ] {
        assert_eq!(
            sniff(bytes),
            want,
            "{:?}",
            String::from_utf8_lossy(&bytes[..bytes.len().min(40)])
        );
    }
}

#[test]
fn a_verdict_stands_when_more_bytes_arrive() {
    let seeds: [&[u8]; 6] = [
        b"GET /a?b HTTP/1.1\r\nHost: a\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST http://a/ HTTP/1.0\r\n\r\n",
        b"GET key value\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        b"",
    ];
    let mut random = Random(0x5eed);
    for round in 0..20_000 {
        let mut input = seeds[random.below(seeds.len())].to_vec();
        for _ in 0..random.below(4) {
            let byte = random.next().to_le_bytes()[0];
            let at = random.below(input.len() + 1);
            match random.below(3) {
                0 => input.insert(at, byte),
                1 if at < input.len() => input[at] = byte,
                _ => input.truncate(at),
            }
        }
        let mut first = Sniff::NeedMore;
        for end in 0..=input.len() {
            let now = sniff(&input[..end]);
            assert!(first == Sniff::NeedMore || first == now, "round {round}: {input:?} at {end}");
            first = now;
        }
    }
}

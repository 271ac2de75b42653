//! What an observer reads of a TLS handshake (RFC 8446 section 4.1): the ClientHello and the
//! ServerHello are in the clear.

/// What the hello of a client offers, or that of a server chose.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hello {
    /// Whether it is a ServerHello.
    pub server: bool,
    /// Protocol versions (`supported_versions`).
    pub versions: Vec<u16>,
    /// Named groups (`supported_groups`, or of a server's `key_share`).
    pub groups: Vec<u16>,
    /// Groups with a key share of the client.
    pub shares: Vec<u16>,
    /// Cipher suites.
    pub suites: Vec<u16>,
    /// ALPN protocols offered.
    pub alpn: Vec<String>,
    /// Server name, if sent.
    pub server_name: Option<String>,
}

/// TLS 1.3.
pub const TLS13: u16 = 0x0304;

/// X25519MLKEM768, the hybrid of an elliptic curve and ML-KEM.
pub const X25519MLKEM768: u16 = 0x11ec;

/// The hello at the start of one direction of a connection; `None` when there is none.
#[must_use]
pub fn hello(flow: &[u8]) -> Option<Hello> {
    // Records of type handshake, put together.
    let mut message = Vec::new();
    let mut at = 0;
    while flow.get(at) == Some(&22) {
        let length = usize::from(u16::from_be_bytes([*flow.get(at + 3)?, *flow.get(at + 4)?]));
        message.extend_from_slice(flow.get(at + 5..at + 5 + length)?);
        at += 5 + length;
    }
    let mut all = Reader(&message);
    let kind = all.u8()?;
    let length = all.u24()?;
    let mut body = Reader(all.take(length)?);
    let server = match kind {
        1 => false,
        2 => true,
        _ => return None,
    };
    let mut hello = Hello { server, ..Hello::default() };
    body.take(2 + 32)?;
    let session = usize::from(body.u8()?);
    body.take(session)?;
    if server {
        hello.suites.push(body.u16()?);
        body.u8()?;
    } else {
        let mut suites = body.list16()?;
        while let Some(suite) = suites.u16() {
            hello.suites.push(suite);
        }
        let compression = usize::from(body.u8()?);
        body.take(compression)?;
    }
    let mut extensions = body.list16()?;
    while let Some(kind) = extensions.u16() {
        let mut data = extensions.list16()?;
        extension(&mut hello, kind, &mut data);
    }
    Some(hello)
}

fn extension(hello: &mut Hello, kind: u16, data: &mut Reader<'_>) -> Option<()> {
    match kind {
        0 => {
            let mut names = data.list16()?;
            names.u8()?;
            let name = names.list16()?;
            hello.server_name = Some(String::from_utf8_lossy(name.0).into_owned());
        }
        10 => {
            let mut groups = data.list16()?;
            while let Some(group) = groups.u16() {
                hello.groups.push(group);
            }
        }
        16 => {
            let mut names = data.list16()?;
            while let Some(length) = names.u8() {
                let name = names.take(usize::from(length))?;
                hello.alpn.push(String::from_utf8_lossy(name).into_owned());
            }
        }
        43 if hello.server => hello.versions.push(data.u16()?),
        43 => {
            data.u8()?;
            while let Some(version) = data.u16() {
                hello.versions.push(version);
            }
        }
        51 if hello.server => hello.groups.push(data.u16()?),
        51 => {
            let mut shares = data.list16()?;
            while let Some(group) = shares.u16() {
                hello.shares.push(group);
                shares.list16()?;
            }
        }
        _ => {}
    }
    Some(())
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }
    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|b| b[0])
    }
    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|b| u16::from_be_bytes([b[0], b[1]]))
    }
    fn u24(&mut self) -> Option<usize> {
        self.take(3).map(|b| usize::from(b[0]) << 16 | usize::from(b[1]) << 8 | usize::from(b[2]))
    }
    fn list16(&mut self) -> Option<Reader<'a>> {
        let length = usize::from(self.u16()?);
        self.take(length).map(Reader)
    }
}

/// Whether one direction of a connection is TLS from its first byte to its last: nothing but
/// records of known types. So is a direction without a byte: whether that is right is another
/// question ([`begins_with_client_hello`]).
#[must_use]
pub fn is_tls(flow: &[u8]) -> bool {
    let mut at = 0;
    while at < flow.len() {
        let Some(header) = flow.get(at..at + 5) else { return flow.len() - at < 5 && at > 0 };
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        if !(20..=23).contains(&header[0]) || header[1] != 3 || length > (1 << 14) + 256 {
            return false;
        }
        at += 5 + length;
    }
    true
}

/// Whether the first bytes of a connection are those of a ClientHello, as far as there are any: a
/// record of type handshake with a message of type client_hello.
#[must_use]
pub fn begins_with_client_hello(flow: &[u8]) -> bool {
    let is = |at: usize, byte: u8| flow.get(at).is_none_or(|found| *found == byte);
    !flow.is_empty() && is(0, 22) && is(1, 3) && is(5, 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_no_tls() {
        assert!(!is_tls(b"GET / HTTP/1.1\r\n\r\n"));
        assert!(is_tls(b""));
        assert!(is_tls(&[23, 3, 3, 0, 2, 1, 2, 21, 3, 3, 0, 1, 0]));
        assert!(!is_tls(&[23, 3, 3, 0, 2, 1, 2, b'G', b'E', b'T', b' ', b'/']));
        assert_eq!(hello(b"GET / HTTP/1.1\r\n\r\n"), None);
    }

    #[test]
    fn only_a_client_hello_begins_a_session() {
        assert!(begins_with_client_hello(&[22, 3, 1, 6, 0, 1, 0]));
        assert!(begins_with_client_hello(&[22, 3]), "cut off");
        assert!(!begins_with_client_hello(b""));
        assert!(!begins_with_client_hello(b"GET / HTTP/1.1"));
        assert!(!begins_with_client_hello(&[23, 3, 3, 0, 2, 1, 2]), "from the middle of a session");
        assert!(!begins_with_client_hello(&[22, 3, 3, 0, 9, 2]), "a ServerHello");
    }

    #[test]
    fn a_client_hello() {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend([0, 0, 2, 0x13, 0x01, 1, 0]);
        let extensions = [
            &[0, 43, 0, 3, 2, 3, 4][..],
            &[0, 10, 0, 6, 0, 4, 0x11, 0xec, 0, 29],
            &[0, 16, 0, 5, 0, 3, 2, b'h', b'2'],
        ]
        .concat();
        body.extend(u16::try_from(extensions.len()).unwrap().to_be_bytes());
        body.extend(extensions);
        let mut message = vec![1, 0, 0, u8::try_from(body.len()).unwrap()];
        message.extend(body);
        let mut record = vec![22, 3, 1, 0, u8::try_from(message.len()).unwrap()];
        record.extend(message);
        let hello = hello(&record).unwrap();
        assert_eq!(hello.versions, [TLS13]);
        assert_eq!(hello.groups, [X25519MLKEM768, 29]);
        assert_eq!(hello.alpn, ["h2"]);
        assert_eq!(hello.suites, [0x1301]);
    }
}

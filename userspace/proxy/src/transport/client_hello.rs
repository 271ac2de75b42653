//! What the first bytes of an inbound connection are: a mesh session, the application's own TLS,
//! or neither. A bounded parser that looks at the ClientHello's ALPN and nothing else; it
//! decides where the connection goes, never whether it may.

use super::Wire;
use fairlead_identity::{ALPN_HBONE, ALPN_NATIVE};

/// Bytes of a ClientHello that are looked at. A hello with post-quantum key shares has about
/// 1.8 KiB; one whose ALPN is not within this is not ours.
pub const MAX_CLIENT_HELLO: usize = 8 * 1024;

/// What the bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peek {
    /// Cannot be told yet.
    NeedMore,
    /// A mesh session.
    Mesh(Wire),
    /// TLS, but not the mesh's.
    OtherTls,
    /// Not TLS.
    NotTls,
}

const RECORD_HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const EXTENSION_ALPN: u16 = 16;

/// Why the parser stops before the end.
enum Stop {
    /// The bytes end here.
    Short,
    /// This is no ClientHello.
    Malformed,
}

/// Looks at peeked bytes. A hello that offers `fairlead/1` is the native transport; one that
/// offers `h2` *and nothing else* is taken as HBONE only where the caller listens for HBONE
/// (port 15008), since an application's own h2-over-TLS looks the same.
#[must_use]
pub fn is_client_hello_with_alpn(bytes: &[u8]) -> Peek {
    match bytes {
        [] => return Peek::NeedMore,
        [RECORD_HANDSHAKE] | [RECORD_HANDSHAKE, 3] => return Peek::NeedMore,
        [RECORD_HANDSHAKE, 3, ..] => {}
        _ => return Peek::NotTls,
    }
    let looked = &bytes[..bytes.len().min(MAX_CLIENT_HELLO)];
    match find_alpn(looked) {
        Ok(wire) => wire.map_or(Peek::OtherTls, Peek::Mesh),
        // Everything that may be looked at has been.
        Err(Stop::Short) if bytes.len() >= MAX_CLIENT_HELLO => Peek::OtherTls,
        Err(Stop::Short) => Peek::NeedMore,
        Err(Stop::Malformed) => Peek::OtherTls,
    }
}

fn find_alpn(bytes: &[u8]) -> Result<Option<Wire>, Stop> {
    let mut hello = Hello { rest: bytes, in_record: 0 };
    if hello.u8()? != CLIENT_HELLO {
        return Err(Stop::Malformed);
    }
    hello.skip(3)?; // length of the message: the extensions have one of their own
    hello.skip(2 + 32)?; // legacy version, random
    let session_id = hello.u8()?;
    if session_id > 32 {
        return Err(Stop::Malformed);
    }
    hello.skip(usize::from(session_id))?;
    let suites = hello.u16()?;
    hello.skip(usize::from(suites))?;
    let compression = hello.u8()?;
    hello.skip(usize::from(compression))?;
    let mut left = usize::from(hello.u16()?);
    while left > 0 {
        let kind = hello.u16()?;
        let length = usize::from(hello.u16()?);
        left = left.checked_sub(4 + length).ok_or(Stop::Malformed)?;
        if kind == EXTENSION_ALPN {
            return hello.protocols(length);
        }
        hello.skip(length)?;
    }
    Ok(None)
}

/// Reads through a handshake message that may be spread over several records.
struct Hello<'a> {
    rest: &'a [u8],
    in_record: usize,
}

impl Hello<'_> {
    fn u8(&mut self) -> Result<u8, Stop> {
        self.enter_record()?;
        let (first, rest) = self.rest.split_first().ok_or(Stop::Short)?;
        self.rest = rest;
        self.in_record -= 1;
        Ok(*first)
    }

    fn u16(&mut self) -> Result<u16, Stop> {
        Ok(u16::from_be_bytes([self.u8()?, self.u8()?]))
    }

    fn skip(&mut self, mut n: usize) -> Result<(), Stop> {
        while n > 0 {
            self.enter_record()?;
            let part = n.min(self.in_record);
            self.rest = self.rest.get(part..).ok_or(Stop::Short)?;
            self.in_record -= part;
            n -= part;
        }
        Ok(())
    }

    /// At the end of a record, reads the next one's header.
    fn enter_record(&mut self) -> Result<(), Stop> {
        if self.in_record > 0 {
            return Ok(());
        }
        let (header, rest) = self.rest.split_at_checked(5).ok_or(Stop::Short)?;
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        // RFC 8446 section 5.1: at most 2^14, and a handshake record is never empty.
        if header[0] != RECORD_HANDSHAKE || header[1] != 3 || length == 0 || length > 1 << 14 {
            return Err(Stop::Malformed);
        }
        self.rest = rest;
        self.in_record = length;
        Ok(())
    }

    fn protocols(&mut self, length: usize) -> Result<Option<Wire>, Stop> {
        let mut left = usize::from(self.u16()?);
        if left + 2 != length {
            return Err(Stop::Malformed);
        }
        let mut offered = 0_usize;
        let mut h2 = false;
        while left > 0 {
            let n = usize::from(self.u8()?);
            left = left.checked_sub(1 + n).ok_or(Stop::Malformed)?;
            if n == 0 {
                return Err(Stop::Malformed);
            }
            offered += 1;
            if n > ALPN_NATIVE.len() {
                self.skip(n)?;
                continue;
            }
            let mut name = [0; ALPN_NATIVE.len()];
            for byte in &mut name[..n] {
                *byte = self.u8()?;
            }
            match &name[..n] {
                ALPN_NATIVE => return Ok(Some(Wire::Native)),
                ALPN_HBONE => h2 = true,
                _ => {}
            }
        }
        Ok((h2 && offered == 1).then_some(Wire::Hbone))
    }
}

#[cfg(test)]
#[path = "client_hello_tests.rs"]
mod tests;

//! What a client's HTTP/1 heads look like on the wire. Where two readers of the same bytes could
//! see two different requests, hyper settles for one reading without telling: it takes a bare LF
//! for the end of a line, and `Transfer-Encoding` where there is `Content-Length` beside it. Such a
//! head is refused here, as Envoy refuses it, before an application sees a byte.
//!
//! No header is parsed a second time: the scanner walks from line to line, looks at the names of
//! three headers, and steps over bodies by their length. It looks at the bytes before hyper does, and
//! makes what it refuses unreadable for hyper, which then answers 400 in its turn, after the answers
//! to what came before, and closes.

/// A line that comes in several reads is kept up to here: enough for the three headers and the
/// size of a chunk.
const KEPT: usize = 96;

/// Why a head is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ambiguous {
    /// A line that ends without CR (RFC 9112 section 2.2).
    BareLf,
    /// `Content-Length` beside `Transfer-Encoding` (RFC 9112 section 6.1).
    TwoLengths,
    /// A length that is no number, or the size of a chunk that is none.
    BadLength,
}

impl Ambiguous {
    /// In words.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::BareLf => "a line ends with a bare LF",
            Self::TwoLengths => "Content-Length beside Transfer-Encoding",
            Self::BadLength => "a body's length is no number",
        }
    }
}

/// What the scanner found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// All of it is well.
    Nothing,
    /// The head that ends before this index asks for a switch of protocols: whether the rest is
    /// scanned depends on the answer.
    MaySwitch(usize),
    /// The LF at this index ends what is refused.
    Refused(usize, Ambiguous),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before a request line.
    Start,
    /// Among headers.
    Headers,
    /// In a body, or a chunk with the CRLF after it, of which so much is left.
    Body { left: u64, chunked: bool },
    /// Before the size of a chunk.
    Size,
    /// Among trailers.
    Trailers,
}

/// The scanner of one connection.
pub(crate) struct HeadScan {
    state: State,
    /// The beginning of a line that comes in several reads, and its length so far.
    line: [u8; KEPT],
    length: usize,
    ended_with_cr: bool,
    head: Head,
}

/// What the present head has said.
#[derive(Clone, Copy, Default)]
struct Head {
    switches: bool,
    chunked: bool,
    length: Option<u64>,
}

impl HeadScan {
    pub(crate) fn new() -> Self {
        Self {
            state: State::Start,
            line: [0; KEPT],
            length: 0,
            ended_with_cr: false,
            head: Head::default(),
        }
    }

    /// Looks at the next bytes of the connection.
    pub(crate) fn scan(&mut self, bytes: &[u8]) -> Found {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            if let State::Body { left, chunked } = &mut self.state {
                let n = usize::try_from(*left).unwrap_or(usize::MAX).min(rest.len());
                *left -= n as u64;
                at += n;
                if *left == 0 {
                    self.state = if *chunked { State::Size } else { State::Start };
                }
                continue;
            }
            let Some(end) = rest.iter().position(|b| *b == b'\n') else {
                self.keep(rest);
                break;
            };
            let line = &rest[..end];
            let cr = match line.last() {
                Some(last) => *last == b'\r',
                None => self.length > 0 && self.ended_with_cr,
            };
            at += end;
            let verdict = if !cr {
                Err(Ambiguous::BareLf)
            } else if self.length == 0 {
                self.end_of_line(&line[..end - 1], true)
            } else {
                self.keep(line);
                let (kept, length) = (self.line, std::mem::take(&mut self.length));
                let whole = length <= KEPT;
                let end = if whole { length - 1 } else { KEPT };
                self.end_of_line(&kept[..end], whole)
            };
            match verdict {
                Err(why) => return Found::Refused(at, why),
                Ok(true) => return Found::MaySwitch(at + 1),
                Ok(false) => at += 1,
            }
        }
        Found::Nothing
    }

    fn keep(&mut self, part: &[u8]) {
        if self.length < KEPT {
            let n = part.len().min(KEPT - self.length);
            self.line[self.length..self.length + n].copy_from_slice(&part[..n]);
        }
        self.length = self.length.saturating_add(part.len());
        self.ended_with_cr = part.last().map_or(self.ended_with_cr, |last| *last == b'\r');
    }

    /// A line without its end, or only its beginning where it is not `whole`. Whether it ends a
    /// head that asks for a switch of protocols.
    fn end_of_line(&mut self, line: &[u8], whole: bool) -> Result<bool, Ambiguous> {
        match self.state {
            // Empty lines before a request are passed over (RFC 9112 section 2.2).
            State::Start if line.is_empty() => {}
            State::Start => {
                self.head = Head { switches: line.starts_with(b"CONNECT "), ..Head::default() };
                self.state = State::Headers;
            }
            State::Headers if line.is_empty() => {
                self.state = match (self.head.chunked, self.head.length) {
                    (true, _) => State::Size,
                    (false, Some(left)) if left > 0 => State::Body { left, chunked: false },
                    (false, _) => State::Start,
                };
                return Ok(self.head.switches);
            }
            State::Headers => self.header(line, whole)?,
            State::Size => {
                // The CRLF after a chunk is stepped over with it.
                self.state = match chunk_size(line, whole).ok_or(Ambiguous::BadLength)? {
                    0 => State::Trailers,
                    size => State::Body { left: size, chunked: true },
                };
            }
            State::Trailers if line.is_empty() => self.state = State::Start,
            State::Trailers | State::Body { .. } => {}
        }
        Ok(false)
    }

    fn header(&mut self, line: &[u8], whole: bool) -> Result<(), Ambiguous> {
        let head = &mut self.head;
        match line.first().map(u8::to_ascii_lowercase) {
            Some(b'c') => {
                let Some(value) = value_of(line, b"content-length:") else { return Ok(()) };
                let length = decimal(value.trim_ascii()).filter(|_| whole);
                head.length = head.length.or(Some(length.ok_or(Ambiguous::BadLength)?));
            }
            Some(b't') => head.chunked |= value_of(line, b"transfer-encoding:").is_some(),
            Some(b'u') => head.switches |= value_of(line, b"upgrade:").is_some(),
            _ => {}
        }
        if head.chunked && head.length.is_some() { Err(Ambiguous::TwoLengths) } else { Ok(()) }
    }
}

/// The value of a header line of this name.
fn value_of<'l>(line: &'l [u8], name: &[u8]) -> Option<&'l [u8]> {
    let (start, value) = line.split_at_checked(name.len())?;
    start.eq_ignore_ascii_case(name).then_some(value)
}

/// Digits alone: no sign, no list.
fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u64, |n, digit| {
        let digit = char::from(*digit).to_digit(10)?;
        n.checked_mul(10)?.checked_add(digit.into())
    })
}

/// The size of a chunk with its CRLF, 0 for the last one; extensions are passed over.
fn chunk_size(line: &[u8], whole: bool) -> Option<u64> {
    let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
    match line.get(digits) {
        None if whole => {}
        Some(b';' | b' ' | b'\t') => {}
        _ => return None,
    }
    let size =
        line.get(..digits).filter(|d| !d.is_empty())?.iter().try_fold(0_u64, |n, digit| {
            n.checked_mul(16)?.checked_add(char::from(*digit).to_digit(16)?.into())
        })?;
    if size == 0 { Some(0) } else { size.checked_add(2) }
}

#[cfg(test)]
#[path = "head_tests.rs"]
mod tests;

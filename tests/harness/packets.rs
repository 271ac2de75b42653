//! Captured packets: the pcap file format, Ethernet, IP and TCP, as much as an observer needs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Result, bail};

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;

/// A captured TCP segment.
#[derive(Clone, Debug)]
pub struct Segment {
    /// From.
    pub source: SocketAddr,
    /// To.
    pub destination: SocketAddr,
    /// Sequence number.
    pub sequence: u32,
    /// First flag byte: FIN 1, SYN 2, RST 4, PSH 8, ACK 16.
    pub flags: u8,
    /// Payload.
    pub payload: Vec<u8>,
}

impl Segment {
    /// A SYN without ACK: the first packet of a connection.
    #[must_use]
    pub fn opens(&self) -> bool {
        self.flags & 0x12 == 0x02
    }
}

/// The TCP segments of a pcap file, and how many other packets it has.
///
/// # Errors
/// It is not a pcap file of Ethernet frames.
pub fn parse(file: &[u8]) -> Result<(Vec<Segment>, usize)> {
    if file.len() < 24 || file[..4] != 0xa1b2_c3d4_u32.to_le_bytes() {
        bail!("not a little-endian pcap file ({} bytes)", file.len());
    }
    let (mut segments, mut others, mut at) = (Vec::new(), 0, 24);
    while let Some(header) = file.get(at..at + 16) {
        let length = u32::from_le_bytes([header[8], header[9], header[10], header[11]]) as usize;
        let Some(frame) = file.get(at + 16..at + 16 + length) else { break };
        match segment(frame) {
            Some(segment) => segments.push(segment),
            None => others += 1,
        }
        at += 16 + length;
    }
    Ok((segments, others))
}

fn segment(frame: &[u8]) -> Option<Segment> {
    let kind = u16::from_be_bytes([*frame.get(12)?, *frame.get(13)?]);
    let packet = frame.get(14..)?;
    let (source, destination, tcp): (IpAddr, IpAddr, &[u8]) = match kind {
        0x0800 => {
            let header = usize::from(packet.first()? & 0x0f) * 4;
            let total = usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]));
            if *packet.get(9)? != 6 {
                return None;
            }
            // Segmentation offload leaves a total length of 0 on frames above 64 KiB.
            let end = if total == 0 { packet.len() } else { total.min(packet.len()) };
            let octets = |i: usize| -> Option<[u8; 4]> { packet.get(i..i + 4)?.try_into().ok() };
            (
                Ipv4Addr::from(octets(12)?).into(),
                Ipv4Addr::from(octets(16)?).into(),
                packet.get(header..end)?,
            )
        }
        0x86dd => {
            let length = usize::from(u16::from_be_bytes([*packet.get(4)?, *packet.get(5)?]));
            if *packet.get(6)? != 6 {
                return None;
            }
            let end = if length == 0 { packet.len() } else { (40 + length).min(packet.len()) };
            let octets = |i: usize| -> Option<[u8; 16]> { packet.get(i..i + 16)?.try_into().ok() };
            (
                Ipv6Addr::from(octets(8)?).into(),
                Ipv6Addr::from(octets(24)?).into(),
                packet.get(40..end)?,
            )
        }
        _ => return None,
    };
    let word = |i: usize| Some(u16::from_be_bytes([*tcp.get(i)?, *tcp.get(i + 1)?]));
    let offset = usize::from(tcp.get(12)? >> 4) * 4;
    Some(Segment {
        source: SocketAddr::new(source, word(0)?),
        destination: SocketAddr::new(destination, word(2)?),
        sequence: u32::from_be_bytes(tcp.get(4..8)?.try_into().ok()?),
        flags: *tcp.get(13)?,
        payload: tcp.get(offset..)?.to_vec(),
    })
}

/// One direction of one connection: its payload in order, retransmissions once.
#[derive(Clone, Debug)]
pub struct Flow {
    /// From.
    pub source: SocketAddr,
    /// To.
    pub destination: SocketAddr,
    /// Bytes, as far as they were captured without a gap.
    pub bytes: Vec<u8>,
    /// Whether this side opened the connection, seen from its SYN.
    pub opened: bool,
    /// What the other side said to that.
    pub answer: Answer,
    /// Whether the other side said anything.
    pub heard: bool,
    /// Whether either side has ended the connection.
    pub ended: bool,
}

/// What came back for a SYN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Nothing that was seen.
    None,
    /// A SYN of the other side: somebody listens.
    Accepted,
    /// An RST.
    Refused,
}

/// Puts segments together to flows, in the order of their first segment. A port used again for a
/// new connection (a new SYN) begins a new flow.
#[must_use]
pub fn flows(segments: &[Segment]) -> Vec<Flow> {
    struct Open {
        flow: Flow,
        next: u32,
        early: Vec<(u32, Vec<u8>)>,
    }
    let mut done: Vec<Open> = Vec::new();
    let mut index = std::collections::HashMap::<(SocketAddr, SocketAddr), usize>::new();
    for segment in segments {
        let key = (segment.source, segment.destination);
        let syn = segment.flags & SYN != 0;
        let known = index.get(&key).copied();
        let again = syn && known.is_some_and(|i| done[i].next != segment.sequence.wrapping_add(1));
        let at = match known {
            Some(at) if !again => at,
            _ => {
                let next = segment.sequence.wrapping_add(u32::from(syn));
                let flow = Flow {
                    source: segment.source,
                    destination: segment.destination,
                    bytes: Vec::new(),
                    opened: segment.opens(),
                    answer: Answer::None,
                    heard: false,
                    ended: false,
                };
                done.push(Open { flow, next, early: Vec::new() });
                index.insert(key, done.len() - 1);
                done.len() - 1
            }
        };
        let ends = segment.flags & (FIN | RST) != 0;
        done[at].flow.ended |= ends;
        if let Some(other) = index.get(&(segment.destination, segment.source)) {
            let other = &mut done[*other].flow;
            other.ended |= ends;
            other.heard |= !segment.payload.is_empty();
            if other.answer == Answer::None {
                other.answer = match segment.flags {
                    flags if flags & SYN != 0 => Answer::Accepted,
                    flags if flags & RST != 0 => Answer::Refused,
                    _ => Answer::None,
                };
            }
        }
        if segment.payload.is_empty() {
            continue;
        }
        let open = &mut done[at];
        open.early.push((segment.sequence, segment.payload.clone()));
        // Take what fits, as long as something fits.
        while let Some(i) = open.early.iter().position(|(sequence, payload)| {
            let ahead = open.next.wrapping_sub(*sequence);
            (ahead as usize) < payload.len().max(1)
        }) {
            let (sequence, payload) = open.early.swap_remove(i);
            let skip = open.next.wrapping_sub(sequence) as usize;
            open.flow.bytes.extend_from_slice(&payload[skip..]);
            open.next = sequence.wrapping_add(u32::try_from(payload.len()).unwrap_or(0));
        }
        open.early.retain(|(sequence, payload)| {
            let end = sequence.wrapping_add(u32::try_from(payload.len()).unwrap_or(0));
            end.wrapping_sub(open.next) as i32 > 0
        });
    }
    done.into_iter().map(|open| open.flow).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(sequence: u32, flags: u8, payload: &[u8]) -> Segment {
        Segment {
            source: "10.0.0.1:1000".parse().unwrap(),
            destination: "10.0.0.2:80".parse().unwrap(),
            sequence,
            flags,
            payload: payload.to_vec(),
        }
    }

    #[test]
    fn order_and_retransmissions() {
        let all = [
            piece(u32::MAX, 2, b""),
            piece(3, 16, b"def"),
            piece(0, 16, b"abc"),
            piece(0, 16, b"abcd"),
            piece(6, 16, b"g"),
        ];
        let flows = flows(&all);
        assert_eq!(flows.len(), 1);
        assert!(flows[0].opened);
        assert_eq!(flows[0].bytes, b"abcdefg");
    }

    #[test]
    fn a_port_used_again_is_a_new_flow() {
        let all = [piece(9, 2, b""), piece(10, 16, b"a"), piece(900, 2, b""), piece(901, 16, b"b")];
        let flows = flows(&all);
        assert_eq!(flows.iter().map(|f| f.bytes.clone()).collect::<Vec<_>>(), [b"a", b"b"]);
    }

    #[test]
    fn what_comes_back_for_a_syn() {
        let back = |sequence: u32, flags: u8| {
            let there = piece(sequence, flags, b"");
            Segment { source: there.destination, destination: there.source, ..there }
        };
        let seen = |all: &[Segment]| {
            let flow = flows(all).swap_remove(0);
            (flow.answer, flow.ended)
        };
        assert_eq!(seen(&[piece(9, SYN, b"")]), (Answer::None, false));
        assert_eq!(seen(&[piece(9, SYN, b""), back(0, RST | 16)]), (Answer::Refused, true));
        let accepted = [piece(9, SYN, b""), back(70, SYN | 16), piece(10, 16, b"")];
        assert_eq!(seen(&accepted), (Answer::Accepted, false));
        let cut = [&accepted[..], &[back(71, RST)]].concat();
        assert_eq!(seen(&cut), (Answer::Accepted, true));
    }

    #[test]
    fn what_is_no_pcap_is_refused() {
        assert!(parse(b"").is_err());
        assert!(parse(&[0; 64]).is_err());
    }
}

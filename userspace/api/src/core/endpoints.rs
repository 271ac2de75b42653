//! The endpoints of a slice, packed: a cluster has a hundred thousand of them, and whoever keeps
//! slices keeps them for as long as they are.
//!
//! Each is a few bytes in one block, with its texts in another, where each text is there once.
//! Equal endpoints in equal order are equal bytes.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Deserializer};

use super::endpoint_slice::EndpointConditions;

/// The endpoints of an [`super::EndpointSlice`].
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Endpoints {
    len: u32,
    bytes: Box<[u8]>,
    texts: Box<str>,
}

/// `Endpoint`.
#[derive(Clone, Copy, Debug)]
pub struct Endpoint<'a> {
    /// Addresses, all of the same endpoint.
    pub addresses: Addresses<'a>,
    /// Conditions.
    pub conditions: EndpointConditions,
    /// First label of its DNS name.
    pub hostname: &'a str,
    /// Node that runs it.
    pub node_name: &'a str,
    /// Zone that it is in.
    pub zone: &'a str,
    /// The object behind it, as a rule a pod.
    pub target_ref: Option<ObjectReference<'a>>,
    /// `hints.forZones`: the zones that should use it.
    pub for_zones: ForZones<'a>,
}

/// One of the addresses of an [`Endpoint`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address<'a> {
    /// An address.
    Ip(IpAddr),
    /// Anything else: a name, or an address that is not written as it usually is.
    Text(&'a str),
}

/// `ObjectReference`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectReference<'a> {
    /// Kind.
    pub kind: &'a str,
    /// Namespace.
    pub namespace: &'a str,
    /// Name.
    pub name: &'a str,
}

/// [`Endpoint::addresses`].
#[derive(Clone, Copy, Debug)]
pub struct Addresses<'a>(Reader<'a>, u32);

/// [`Endpoint::for_zones`].
#[derive(Clone, Copy, Debug)]
pub struct ForZones<'a>(Reader<'a>, u32);

/// The endpoints one after the other.
#[derive(Clone, Debug)]
pub struct Iter<'a>(Reader<'a>, u32);

/// What stands before an address: how it is kept.
const TEXT: u8 = 0;
const V4: u8 = 4;
const V6: u8 = 6;
/// Bit of the first byte of an endpoint, behind two for each of the conditions.
const HAS_TARGET: u8 = 1 << 6;

impl Endpoints {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// One after the other.
    #[must_use]
    pub fn iter(&self) -> Iter<'_> {
        Iter(Reader { bytes: &self.bytes, texts: &self.texts }, self.len)
    }
}

impl<'a> IntoIterator for &'a Endpoints {
    type Item = Endpoint<'a>;
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

impl fmt::Debug for Endpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self).finish()
    }
}

impl Address<'_> {
    /// The address, if it is one.
    #[must_use]
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Self::Ip(ip) => Some(*ip),
            Self::Text(text) => text.parse().ok(),
        }
    }
}

impl fmt::Display for Address<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::Text(text) => f.write_str(text),
        }
    }
}

impl<'a> Iterator for Iter<'a> {
    type Item = Endpoint<'a>;

    fn next(&mut self) -> Option<Endpoint<'a>> {
        self.1 = self.1.checked_sub(1)?;
        let reader = &mut self.0;
        let head = reader.byte();
        let condition = |at: u32| match head >> (2 * at) & 3 {
            0 => None,
            set => Some(set == 2),
        };
        let conditions = EndpointConditions {
            ready: condition(0),
            serving: condition(1),
            terminating: condition(2),
        };
        let (hostname, node_name, zone) = (reader.text(), reader.text(), reader.text());
        let target_ref = (head & HAS_TARGET != 0).then(|| ObjectReference {
            kind: reader.text(),
            namespace: reader.text(),
            name: reader.text(),
        });
        let count = reader.number();
        let for_zones = ForZones(*reader, count);
        (0..count).for_each(|_| {
            reader.text();
        });
        let count = reader.number();
        let addresses = Addresses(*reader, count);
        (0..count).for_each(|_| {
            reader.address();
        });
        Some(Endpoint { addresses, conditions, hostname, node_name, zone, target_ref, for_zones })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.1 as usize, Some(self.1 as usize))
    }
}

impl ExactSizeIterator for Iter<'_> {}

impl<'a> Iterator for Addresses<'a> {
    type Item = Address<'a>;

    fn next(&mut self) -> Option<Address<'a>> {
        self.1 = self.1.checked_sub(1)?;
        Some(self.0.address())
    }
}

impl<'a> Iterator for ForZones<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        self.1 = self.1.checked_sub(1)?;
        Some(self.0.text())
    }
}

impl ForZones<'_> {
    /// Whether no zone is named.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.1 == 0
    }
}

impl Addresses<'_> {
    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.1 == 0
    }
}

/// Reads what [`Writer`] wrote, from here on.
#[derive(Clone, Copy)]
struct Reader<'a> {
    bytes: &'a [u8],
    texts: &'a str,
}

impl fmt::Debug for Reader<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.bytes.len())
    }
}

impl<'a> Reader<'a> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.bytes.split_first() else { return 0 };
        self.bytes = rest;
        *first
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let Some((first, rest)) = self.bytes.split_first_chunk() else { return [0; N] };
        self.bytes = rest;
        *first
    }

    /// Seven bits a byte, the lowest first.
    fn number(&mut self) -> u32 {
        let mut number = 0;
        for shift in (0..u32::BITS).step_by(7) {
            let byte = self.byte();
            number |= u32::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                break;
            }
        }
        number
    }

    fn text(&mut self) -> &'a str {
        let len = self.number() as usize;
        if len == 0 {
            return "";
        }
        let start = self.number() as usize;
        self.texts.get(start..start + len).unwrap_or_default()
    }

    fn address(&mut self) -> Address<'a> {
        match self.byte() {
            V4 => Address::Ip(Ipv4Addr::from(self.array()).into()),
            V6 => Address::Ip(Ipv6Addr::from(self.array()).into()),
            _ => Address::Text(self.text()),
        }
    }
}

/// Packs endpoints.
#[derive(Default)]
struct Writer {
    bytes: Vec<u8>,
    texts: String,
    known: HashMap<String, u32>,
}

impl Writer {
    fn number(&mut self, mut number: u32) {
        while number > 0x7f {
            self.bytes.push(u8::try_from(number & 0x7f).unwrap_or(0) | 0x80);
            number >>= 7;
        }
        self.bytes.push(u8::try_from(number).unwrap_or(0));
    }

    /// A length; what is larger than the text of any object cannot come.
    fn length(&mut self, length: usize) {
        self.number(u32::try_from(length).unwrap_or(0));
    }

    fn text(&mut self, text: &str) {
        self.length(text.len());
        if text.is_empty() {
            return;
        }
        let start = match self.known.get(text) {
            Some(start) => *start,
            None => {
                let start = u32::try_from(self.texts.len()).unwrap_or(0);
                self.texts.push_str(text);
                self.known.insert(text.to_owned(), start);
                start
            }
        };
        self.number(start);
    }

    fn address(&mut self, text: &str) {
        // Not every address is written as it would be printed, and people are told their own words.
        let ip = text.parse::<IpAddr>().ok().filter(|ip| ip.to_string() == text);
        match ip {
            Some(IpAddr::V4(ip)) => {
                self.bytes.push(V4);
                self.bytes.extend(ip.octets());
            }
            Some(IpAddr::V6(ip)) => {
                self.bytes.push(V6);
                self.bytes.extend(ip.octets());
            }
            None => {
                self.bytes.push(TEXT);
                self.text(text);
            }
        }
    }

    fn endpoint(&mut self, written: &Written) {
        let EndpointConditions { ready, serving, terminating } = written.conditions;
        let bits = |condition: Option<bool>| condition.map_or(0, |set| 1 + u8::from(set));
        let target = written.target_ref.as_ref();
        let head = bits(ready) | bits(serving) << 2 | bits(terminating) << 4;
        self.bytes.push(head | if target.is_some() { HAS_TARGET } else { 0 });
        for text in [&written.hostname, &written.node_name, &written.zone] {
            self.text(text);
        }
        if let Some(WrittenReference { kind, namespace, name }) = target {
            for text in [kind, namespace, name] {
                self.text(text);
            }
        }
        let zones = written.hints.as_ref().map_or(&[][..], |hints| &hints.for_zones);
        self.length(zones.len());
        for zone in zones {
            self.text(&zone.name);
        }
        self.length(written.addresses.len());
        for address in &written.addresses {
            self.address(address);
        }
    }
}

/// An endpoint as JSON and YAML have it.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Written {
    addresses: Vec<String>,
    conditions: EndpointConditions,
    hostname: String,
    node_name: String,
    zone: String,
    target_ref: Option<WrittenReference>,
    hints: Option<WrittenHints>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WrittenReference {
    kind: String,
    namespace: String,
    name: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct WrittenHints {
    for_zones: Vec<WrittenZone>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WrittenZone {
    name: String,
}

impl<'de> Deserialize<'de> for Endpoints {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let written: Vec<Written> = Vec::deserialize(deserializer)?;
        let mut writer = Writer::default();
        written.iter().for_each(|endpoint| writer.endpoint(endpoint));
        Ok(Self {
            len: u32::try_from(written.len()).unwrap_or(u32::MAX),
            bytes: writer.bytes.into(),
            texts: writer.texts.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Endpoints {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn what_is_packed_comes_out_again() {
        let long = "n".repeat(300);
        let endpoints = read(&format!(
            r#"[{{"addresses": ["10.0.0.1", "fd00::1"], "conditions": {{"ready": true, "terminating": false}},
                "nodeName": "{long}", "zone": "a", "hostname": "h",
                "targetRef": {{"kind": "Pod", "namespace": "shop", "name": "p"}},
                "hints": {{"forZones": [{{"name": "a"}}, {{"name": "b"}}]}}}},
               {{"addresses": ["FD00::1", "x.example", ""], "conditions": {{"serving": true}}, "zone": "a",
                "nodeName": "{long}"}},
               {{}}]"#
        ));
        let all: Vec<Endpoint<'_>> = endpoints.iter().collect();
        assert_eq!((all.len(), endpoints.len(), endpoints.is_empty()), (3, 3, false));
        let first = all[0];
        let addresses: Vec<String> = first.addresses.map(|a| a.to_string()).collect();
        assert_eq!(addresses, ["10.0.0.1", "fd00::1"]);
        assert!(first.addresses.map(|a| a.ip()).eq([
            Some(IpAddr::from([10, 0, 0, 1])),
            Some(IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 1])),
        ]));
        let expected =
            EndpointConditions { ready: Some(true), serving: None, terminating: Some(false) };
        assert_eq!(first.conditions, expected);
        assert_eq!((first.node_name, first.zone, first.hostname), (long.as_str(), "a", "h"));
        let pod = ObjectReference { kind: "Pod", namespace: "shop", name: "p" };
        assert_eq!(first.target_ref, Some(pod));
        assert!(first.for_zones.eq(["a", "b"]) && !first.for_zones.is_empty());

        let second = all[1];
        assert_eq!(second.conditions.serving, Some(true));
        assert_eq!((second.conditions.ready, second.target_ref), (None, None));
        assert_eq!((second.node_name, second.zone, second.hostname), (long.as_str(), "a", ""));
        let addresses: Vec<Address<'_>> = second.addresses.collect();
        let texts = ["FD00::1", "x.example", ""].map(Address::Text);
        assert_eq!(addresses, texts, "the words that were written");
        assert_eq!(addresses[0].ip(), Some(IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 1])));
        assert_eq!((addresses[1].ip(), addresses[2].ip()), (None, None));

        assert!(all[2].addresses.is_empty() && all[2].for_zones.is_empty());
        assert!(endpoints.texts.matches(&long).count() == 1, "each text is there once");
    }

    #[test]
    fn equal_is_what_was_written_alike() {
        let one = r#"{"addresses": ["10.0.0.1"], "nodeName": "a"}"#;
        let other = r#"{"nodeName": "a", "addresses": ["10.0.0.1"], "unknown": 1}"#;
        assert_eq!(read(&format!("[{one}]")), read(&format!("[{other}]")));
        for different in [
            r#"{"addresses": ["10.0.0.2"], "nodeName": "a"}"#,
            r#"{"addresses": ["10.0.0.1"], "nodeName": "b"}"#,
            r#"{"addresses": ["10.0.0.1"], "zone": "a"}"#,
            r#"{"addresses": ["10.0.0.1"], "nodeName": "a", "conditions": {"ready": false}}"#,
        ] {
            assert_ne!(read(&format!("[{one}]")), read(&format!("[{different}]")), "{different}");
        }
        assert!(read("[]").is_empty());
    }
}

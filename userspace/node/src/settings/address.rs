//! Addresses of services, as people write them: `https://host:port`.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

/// Port where none is written: that of Istio's control plane.
const DEFAULT_PORT: u16 = 15012;

/// A service that is spoken to over TLS.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Address {
    /// A DNS name, or an IP address without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| Err(format!("{why}; write it as https://HOST:PORT"));
        let rest = match text.split_once("://") {
            Some(("https", rest)) => rest,
            Some((other, _)) => return wrong(&format!("{other}:// is not spoken here")),
            None => text,
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let uri: http::uri::Authority = match rest.parse() {
            Ok(authority) => authority,
            Err(_) => return wrong("this is no host and port"),
        };
        if rest.contains('@') {
            return wrong("a user has no place in it");
        }
        let host = uri.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return wrong("the host is missing");
        }
        let behind = rest.rsplit(']').next().unwrap_or_default().rsplit_once(':');
        let port = match behind.map(|(_, port)| port.parse::<u16>()) {
            None => DEFAULT_PORT,
            Some(Ok(port)) if port > 0 => port,
            Some(_) => return wrong("this is no port"),
        };
        Ok(Self { host, port })
    }
}

impl TryFrom<String> for Address {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "https://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "https://{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_ports_are_read_and_nothing_else() {
        for (text, shown) in [
            ("https://a.b.svc:15012", "https://a.b.svc:15012"),
            ("https://a.b.svc/", "https://a.b.svc:15012"),
            ("a:443", "https://a:443"),
            ("https://10.0.0.1:1", "https://10.0.0.1:1"),
            ("https://[fd00::1]:443", "https://[fd00::1]:443"),
        ] {
            assert_eq!(text.parse::<Address>().map(|a| a.to_string()), Ok(shown.to_owned()));
        }
        for text in [
            "",
            "https://",
            "http://a:1",
            "https://a:0",
            "https://a:x",
            "https://a/b",
            "https://u@a:1",
            "https://a:99999",
            ":1",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text:?}");
        }
    }
}

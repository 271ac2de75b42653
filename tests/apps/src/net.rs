//! What all the applications need of the network: listening on both families, and names from a
//! file in the form of `/etc/hosts`, because a network namespace has none of its own.

use std::io;
use std::net::{IpAddr, SocketAddr};

use anyhow::Context;
use tokio::net::{TcpListener, TcpStream};

/// Environment variable with the path of the hosts file.
pub(crate) const HOSTS: &str = "FAIRLEAD_APPS_HOSTS";

/// A listener on `port` for IPv4 and IPv6, or on the one address that is given.
pub(crate) async fn listen(bind: Option<IpAddr>, port: u16) -> anyhow::Result<TcpListener> {
    let addr =
        SocketAddr::new(bind.unwrap_or_else(|| std::net::Ipv6Addr::UNSPECIFIED.into()), port);
    TcpListener::bind(addr).await.with_context(|| format!("listening on {addr}"))
}

/// An address as people write it: no IPv4-mapped form.
pub(crate) fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// Addresses of `host:port`, from the hosts file first.
pub(crate) async fn resolve(authority: &str) -> io::Result<SocketAddr> {
    if let Ok(addr) = authority.parse() {
        return Ok(addr);
    }
    let bad =
        |what: &str| io::Error::new(io::ErrorKind::InvalidInput, format!("{what}: {authority}"));
    let (host, port) = authority.rsplit_once(':').ok_or_else(|| bad("no port"))?;
    let port: u16 = port.parse().map_err(|_| bad("no valid port"))?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, port));
    }
    if let Some(path) = std::env::var_os(HOSTS) {
        let text = std::fs::read_to_string(path)?;
        for line in text.lines() {
            let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
            if let Some(Ok(ip)) = words.next().map(str::parse::<IpAddr>)
                && words.any(|name| name == host)
            {
                return Ok(SocketAddr::new(ip, port));
            }
        }
    }
    tokio::net::lookup_host((host, port)).await?.next().ok_or_else(|| bad("no address"))
}

/// A connection to `host:port` with Nagle's algorithm off.
pub(crate) async fn connect(authority: &str) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(resolve(authority).await?).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Says on standard output that the application takes connections.
pub(crate) fn ready(what: &str) {
    println!("ready: {what}");
}

/// Turns `\r`, `\n`, `\t`, `\\`, `\xHH` of a command line into bytes.
pub(crate) fn unescape(text: &str) -> anyhow::Result<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        if b != b'\\' {
            out.push(b);
            continue;
        }
        match bytes.next() {
            Some(b'r') => out.push(b'\r'),
            Some(b'n') => out.push(b'\n'),
            Some(b't') => out.push(b'\t'),
            Some(b'0') => out.push(0),
            Some(b'\\') => out.push(b'\\'),
            Some(b'x') => {
                let digit = |d: Option<u8>| d.and_then(|d| (d as char).to_digit(16));
                match (digit(bytes.next()), digit(bytes.next())) {
                    (Some(hi), Some(lo)) => out.push(u8::try_from(hi * 16 + lo)?),
                    _ => anyhow::bail!("\\x needs two hexadecimal digits"),
                }
            }
            other => anyhow::bail!("unknown escape \\{:?}", other.map(char::from)),
        }
    }
    Ok(out)
}

/// Splits `http://host:port/path` into authority (with port) and path.
pub(crate) fn split_url(url: &str) -> anyhow::Result<(String, String)> {
    let rest = url.strip_prefix("http://").context("only http:// URLs")?;
    let at = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(at);
    let path = match path.as_bytes().first() {
        None => "/".to_owned(),
        Some(b'?') => format!("/{path}"),
        _ => path.to_owned(),
    };
    let has_port = authority.rsplit_once(':').is_some_and(|(_, p)| p.parse::<u16>().is_ok());
    let authority = if has_port { authority.to_owned() } else { format!("{authority}:80") };
    Ok((authority, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes() {
        assert_eq!(unescape(r"a\r\n\x41\\\0").unwrap(), b"a\r\nA\\\0");
        assert!(unescape(r"\x4").is_err());
        assert!(unescape(r"\q").is_err());
    }

    #[test]
    fn urls() {
        assert_eq!(split_url("http://a").unwrap(), ("a:80".into(), "/".into()));
        assert_eq!(
            split_url("http://[::1]:8080/x?y").unwrap(),
            ("[::1]:8080".into(), "/x?y".into())
        );
        assert_eq!(split_url("http://a?b").unwrap(), ("a:80".into(), "/?b".into()));
        assert!(split_url("https://a").is_err());
    }
}

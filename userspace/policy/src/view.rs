//! What decisions look at: borrowed views of a connection and of a request.

use std::net::{IpAddr, SocketAddr};

use fairlead_types::{Labels, SpiffeId};
use http::{HeaderMap, Method};

/// The workload that a connection or request comes from, as its own node sees it (routing).
#[derive(Clone, Copy, Debug)]
pub struct SourceView<'a> {
    /// Labels of the source pod (VirtualService `sourceLabels`).
    pub labels: &'a Labels,
    /// Namespace of the source pod (`sourceNamespace`, short names, `exportTo`).
    pub namespace: &'a str,
    /// Address of the source pod.
    pub ip: IpAddr,
}

/// A connection as the destination's node sees it (authorization).
#[derive(Clone, Copy, Debug)]
pub struct ConnView<'a> {
    /// The verified identity of the peer; `None` on plaintext.
    pub peer: Option<&'a SpiffeId>,
    /// Address of the client (`source.ip`, `ipBlocks`).
    pub source: SocketAddr,
    /// Address that was asked for: `destination.ip`, `destination.port`, `ports`.
    pub destination: SocketAddr,
    /// `connection.sni`, where there was one.
    pub sni: Option<&'a str>,
}

/// A request, before any filter changed it.
#[derive(Clone, Copy, Debug)]
pub struct RequestView<'a> {
    /// The method.
    pub method: &'a Method,
    /// `http` or `https`.
    pub scheme: &'a str,
    /// Authority (`Host` or `:authority`), as sent, with a port if it had one.
    pub authority: &'a str,
    /// Path without query. For authorization and routing it is normalized first
    /// ([`crate::authz::path`]), and the normalized one is forwarded. Empty for `CONNECT`, which
    /// has none: no list of paths contains it.
    pub path: &'a str,
    /// Query without `?`.
    pub query: Option<&'a str>,
    /// Headers.
    pub headers: &'a HeaderMap,
}

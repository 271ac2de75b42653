//! Real traffic over loopback through whole data planes: two nodes in one process, pods that are
//! loopback addresses, and a [`fairlead_types::PodPort`] that makes plain sockets. What the
//! kernel does (capture, steering) is done by the harness.

mod access_log;
mod harness;
mod hostile;
mod http1;
mod http2;
mod l4;
mod nodes;
mod policy;
mod routing;
mod successor;
mod unseen;

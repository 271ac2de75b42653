//! Pure decisions: which route, which endpoint, allowed or denied, what to do to a request.
//!
//! Nothing here does I/O, knows a runtime, or reads configuration files: `config` compiles
//! resources into these types once per change, `proxy` asks them once per connection or request.
#![forbid(unsafe_code)]

pub mod authz;
pub mod balance;
pub mod filter;
pub mod matcher;
mod percentage;
pub mod route;
#[cfg(test)]
mod testing;
mod view;

pub use percentage::Percentage;
pub use view::{ConnView, RequestView, SourceView};

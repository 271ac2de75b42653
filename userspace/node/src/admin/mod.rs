//! The admin API: plain HTTP/1.1 on loopback, for people with `curl`, for probes and for
//! Prometheus. `docs/admin-api.md` lists the pages.
//!
//! Pages are registered by those who own what they show; here are the server and its bounds. It
//! runs on the control runtime, so that a scrape takes nothing from traffic.

#[doc(hidden)]
pub mod fuzz;
mod patient;
mod reply;
mod server;

use std::collections::BTreeMap;

use http::Method;

pub use reply::{Body, Reply};
pub use server::Server;

/// A request as pages see it.
#[derive(Clone, Debug)]
pub struct Query {
    /// Method: GET (HEAD is answered as GET without its body) or POST.
    pub method: Method,
    parameters: Vec<(String, String)>,
}

impl Query {
    /// The value of a query parameter.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str())
    }

    fn new(method: Method, query: &str) -> Self {
        let decode = |text: &str| {
            let text = text.replace('+', " ");
            percent_encoding::percent_decode_str(&text).decode_utf8_lossy().into_owned()
        };
        let parameters = query
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .map(|(k, v)| (decode(k), decode(v)))
            .collect();
        Self { method, parameters }
    }
}

type Handler = Box<dyn Fn(&Query) -> Reply + Send + Sync>;

struct Page {
    help: &'static str,
    handler: Handler,
}

/// The pages of the API.
#[derive(Default)]
pub struct Pages(BTreeMap<&'static str, Page>);

impl Pages {
    /// Adds a page. `help` is its line in the index at `/`.
    #[must_use]
    pub fn page(
        mut self,
        path: &'static str,
        help: &'static str,
        handler: impl Fn(&Query) -> Reply + Send + Sync + 'static,
    ) -> Self {
        self.0.insert(path, Page { help, handler: Box::new(handler) });
        self
    }

    fn answer(&self, path: &str, query: &Query) -> Reply {
        match self.0.get(path) {
            Some(page) => (page.handler)(query),
            None if path == "/" => self.index(),
            None => Reply::text(404, format!("no page {path}; / lists them\n")),
        }
    }

    fn index(&self) -> Reply {
        let mut text = String::from("fairlead-node admin API\n\n");
        for (path, page) in &self.0 {
            text.push_str(&format!("{path:<14} {}\n", page.help));
        }
        Reply::text(200, text)
    }
}

#[cfg(test)]
mod tests;

//! Facts about the book.

use std::sync::atomic::{AtomicU64, Ordering};

use http::StatusCode;
use serde_json::json;

/// Arguments of `details`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Port.
    #[arg(long, default_value_t = 9080)]
    port: u16,
    /// Every other request of this user is answered with 500, to have something to retry.
    #[arg(long, default_value = "flaky")]
    flaky_user: String,
}

/// Serves until the process ends.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let listener = crate::net::listen(None, args.port).await?;
    crate::net::ready("details");
    let (flaky, count) = (args.flaky_user, AtomicU64::new(0));
    crate::http_server::serve(listener, move |request, _| {
        let user = request.headers().get("end-user");
        let fails = user.is_some_and(|user| user.as_bytes() == flaky.as_bytes())
            && count.fetch_add(1, Ordering::Relaxed).is_multiple_of(2);
        std::future::ready(if fails {
            let told = json!({ "error": "this one fails on purpose" });
            super::answer(StatusCode::INTERNAL_SERVER_ERROR, "v1", &told)
        } else if request.uri().path().starts_with("/details/") {
            let book = json!({
                "id": 0, "author": "William Shakespeare", "year": 1595, "type": "paperback",
                "pages": 200, "isbn-13": "123-1234567890",
            });
            super::answer(StatusCode::OK, "v1", &book)
        } else {
            super::answer(StatusCode::NOT_FOUND, "v1", &json!({ "error": "no such page" }))
        })
    })
    .await
}

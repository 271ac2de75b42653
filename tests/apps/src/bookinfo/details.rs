//! Facts about the book.

use http::StatusCode;
use serde_json::json;

/// Arguments of `details`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Port.
    #[arg(long, default_value_t = 9080)]
    port: u16,
}

/// Serves until the process ends.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let listener = crate::net::listen(None, args.port).await?;
    crate::net::ready("details");
    crate::http_server::serve(listener, |request, _| async move {
        if request.uri().path().starts_with("/details/") {
            let book = json!({
                "id": 0, "author": "William Shakespeare", "year": 1595, "type": "paperback",
                "pages": 200, "isbn-13": "123-1234567890",
            });
            super::answer(StatusCode::OK, "v1", &book)
        } else {
            super::answer(StatusCode::NOT_FOUND, "v1", &json!({ "error": "no such page" }))
        }
    })
    .await
}

//! The page: what details and reviews say, in one JSON object.

use http::StatusCode;
use serde_json::json;

/// Arguments of `productpage`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Port.
    #[arg(long, default_value_t = 9080)]
    port: u16,
    /// host:port of details.
    #[arg(long, default_value = "details:9080")]
    details: String,
    /// host:port of reviews.
    #[arg(long, default_value = "reviews:9080")]
    reviews: String,
}

/// Serves until the process ends.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let listener = crate::net::listen(None, args.port).await?;
    crate::net::ready("productpage");
    let (details, reviews) = (args.details, args.reviews);
    crate::http_server::serve(listener, move |request, _| {
        let (details, reviews) = (details.clone(), reviews.clone());
        async move {
            let headers = super::passed_on(request.headers());
            if request.uri().path() == "/health" {
                return super::answer(StatusCode::OK, "v1", &json!({ "status": "up" }));
            }
            let ((details_status, details), (reviews_status, reviews)) = tokio::join!(
                super::ask(&details, "/details/0", &headers),
                super::ask(&reviews, "/reviews/0", &headers),
            );
            // As the original: the page is there even when a part of it is not.
            let page = json!({
                "title": "The Comedy of Errors",
                "details": { "status": details_status, "content": details },
                "reviews": { "status": reviews_status, "content": reviews },
            });
            let version = page["reviews"]["content"]["version"].as_str().unwrap_or("none");
            super::answer(StatusCode::OK, version, &page)
        }
    })
    .await
}

//! Reviews: v1 has no stars, v2 black ones, v3 red ones.

use http::StatusCode;
use serde_json::{Value, json};

/// Arguments of `reviews`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Port.
    #[arg(long, default_value_t = 9080)]
    port: u16,
    /// v1, v2 or v3.
    #[arg(long = "reviews-version", default_value = "v1")]
    version: String,
    /// Name of the pod.
    #[arg(long, default_value = "reviews")]
    pod: String,
    /// host:port of ratings.
    #[arg(long, default_value = "ratings:9080")]
    ratings: String,
}

/// Serves until the process ends.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let listener = crate::net::listen(None, args.port).await?;
    crate::net::ready(&format!("reviews {}", args.version));
    crate::http_server::serve(listener, move |request, _| {
        let (version, pod, ratings) = (args.version.clone(), args.pod.clone(), args.ratings.clone());
        async move {
            let headers = super::passed_on(request.headers());
            let stars = match version.as_str() {
                "v1" => Value::Null,
                _ => match stars(&ratings, &headers).await {
                    Ok(stars) => stars,
                    Err(error) => json!({ "error": format!("{error:#}") }),
                },
            };
            let color = match version.as_str() {
                "v2" => json!("black"),
                "v3" => json!("red"),
                _ => Value::Null,
            };
            let told = json!({
                "id": "0", "version": version, "podname": pod, "color": color,
                "reviews": [
                    { "reviewer": "Reviewer1", "text": "An extremely entertaining play.", "stars": stars["Reviewer1"] },
                    { "reviewer": "Reviewer2", "text": "Absolutely fun and entertaining.", "stars": stars["Reviewer2"] },
                ],
                "error": stars["error"],
            });
            super::answer(StatusCode::OK, &version, &told)
        }
    })
    .await
}

async fn stars(
    ratings: &str,
    headers: &[(http::HeaderName, http::HeaderValue)],
) -> anyhow::Result<Value> {
    let call = crate::grpc::client::unary(ratings, ratings, "/bookinfo.Ratings/Get", "0", headers);
    let told = tokio::time::timeout(super::CALL_LIMIT, call).await??;
    Ok(serde_json::from_str(&told)?)
}

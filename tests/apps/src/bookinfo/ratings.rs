//! Ratings: a gRPC server that reads from the database for each call.

use bytes::Bytes;
use http::Response;
use http_body::Frame;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

use crate::grpc::{Messages, encode, server};
use crate::http_server::Body;

/// Arguments of `ratings`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Port.
    #[arg(long, default_value_t = 9080)]
    port: u16,
    /// host:port of the database.
    #[arg(long, default_value = "ratingsdb:3306")]
    db: String,
}

/// Serves until the process ends.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let listener = crate::net::listen(None, args.port).await?;
    crate::net::ready("ratings");
    crate::http_server::serve(listener, move |request, _| {
        let db = args.db.clone();
        async move {
            let mut messages = Messages::new(request.into_body());
            let id = messages.next().await.ok().flatten().unwrap_or_default();
            let frames = match tokio::time::timeout(super::CALL_LIMIT, query(&db, &id)).await {
                Ok(Ok(line)) => {
                    vec![Frame::data(encode(&line)), server::trailers("0", "")]
                }
                Ok(Err(error)) => {
                    eprintln!("database: {error:#}");
                    unavailable()
                }
                Err(_) => unavailable(),
            };
            let response: Response<Body> = server::response(crate::fetch::streamed(frames));
            response
        }
    })
    .await
}

fn unavailable() -> Vec<Frame<Bytes>> {
    vec![server::trailers("14", "database%20unavailable")]
}

/// One query over a connection of its own: banner, question, answer.
async fn query(db: &str, id: &str) -> anyhow::Result<String> {
    let stream = crate::net::connect(db).await?;
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    anyhow::ensure!(line.starts_with("RATINGSDB 1"), "no banner but {line:?}");
    stream.write_all(format!("GET {id}\n").as_bytes()).await?;
    line.clear();
    stream.read_line(&mut line).await?;
    stream.write_all(b"QUIT\n").await?;
    let found = line.strip_prefix("OK ").map(|l| l.trim_end().to_owned());
    found.ok_or_else(|| anyhow::anyhow!("the database said {line:?}"))
}

//! The ratings database: a TCP protocol in which the server speaks first. After the banner,
//! `GET <id>` is answered with `OK <json>`, `QUIT` ends.

use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// Arguments of `ratingsdb`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Port.
    #[arg(long, default_value_t = 3306)]
    port: u16,
}

/// Longest line taken.
const MAX_LINE: u64 = 1024;

/// Serves until the process ends.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let listener = crate::net::listen(None, args.port).await?;
    crate::net::ready("ratingsdb");
    loop {
        let (stream, peer) = listener.accept().await?;
        tokio::spawn(async move {
            if let Err(error) = session(stream).await {
                eprintln!("session of {peer}: {error}");
            }
        });
    }
}

async fn session(stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    stream.write_all(b"RATINGSDB 1 ready\n").await?;
    loop {
        let mut line = String::new();
        let n = (&mut stream).take(MAX_LINE).read_line(&mut line).await?;
        let mut words = line.split_whitespace();
        match (n, words.next()) {
            (0, _) | (_, Some("QUIT")) => return stream.shutdown().await,
            (_, Some("GET")) => {
                let stars = json!({ "Reviewer1": 5, "Reviewer2": 4 });
                stream.write_all(format!("OK {stars}\n").as_bytes()).await?;
            }
            _ => stream.write_all(b"ERR unknown command\n").await?,
        }
    }
}

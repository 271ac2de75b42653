//! Holds many idle connections open: each says one line, hears the answer, and stays.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Arguments of `hold`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// host:port of a TCP echo server
    to: String,
    /// Connections.
    count: usize,
}

/// Opens them all, says `held`, and waits to be killed.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let mut held = Vec::with_capacity(args.count);
    for _ in 0..args.count {
        let mut stream = crate::net::connect(&args.to).await?;
        stream.write_all(b"hello\n").await?;
        let mut buf = [0; 1024];
        let n = stream.read(&mut buf).await?;
        anyhow::ensure!(n > 0, "closed after {} connections", held.len());
        held.push(stream);
    }
    println!("held {}", held.len());
    std::future::pending::<()>().await;
    Ok(())
}

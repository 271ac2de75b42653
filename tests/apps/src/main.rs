//! The applications of the demo and the scenarios, in one small binary: a Bookinfo-like
//! application (HTTP, gRPC and a TCP protocol of its own), echo servers that show what arrived,
//! and clients that report what they saw as JSON. None of them knows of the mesh.

mod bookinfo;
mod connect_first;
mod echo;
mod fetch;
mod grpc;
mod hold;
mod http_client;
mod http_server;
mod load;
mod net;
mod send;
mod sha1;
mod websocket;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "fairlead-apps", version, about = "Applications of the demo and the scenarios")]
struct Cli {
    #[command(subcommand)]
    app: App,
}

#[derive(Subcommand)]
enum App {
    /// Bookinfo: the page that calls details and reviews.
    Productpage(bookinfo::productpage::Args),
    /// Bookinfo: facts about the book.
    Details(bookinfo::details::Args),
    /// Bookinfo: reviews; v2 and v3 ask ratings over gRPC.
    Reviews(bookinfo::reviews::Args),
    /// Bookinfo: ratings, a gRPC server that reads from the database.
    Ratings(bookinfo::ratings::Args),
    /// Bookinfo: the database, a TCP protocol in which the server speaks first.
    Ratingsdb(bookinfo::ratingsdb::Args),
    /// Echo servers on as many ports as are named.
    Echo(echo::Args),
    /// One HTTP request; prints what came back as JSON.
    Get(fetch::Args),
    /// A load generator for HTTP, gRPC and TCP; prints counts and percentiles as JSON.
    Load(load::Args),
    /// Sends raw bytes and prints what came back and how the connection ended, as JSON.
    Send(send::Args),
    /// A gRPC client; prints messages and trailers as JSON.
    Grpc(grpc::client::Args),
    /// A WebSocket client; prints what was echoed as JSON.
    Ws(websocket::ClientArgs),
    /// Holds idle connections.
    Hold(hold::Args),
    /// Connects before it does anything else; prints what became of it as JSON.
    ConnectFirst(connect_first::Args),
}

fn main() -> anyhow::Result<()> {
    // Before the command line is parsed and a runtime is built: its first act is connect().
    if let Some(args) = connect_first::Args::from_env() {
        return connect_first::run(&args);
    }
    let cli = Cli::parse();
    let threads = 2;
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()?
        .block_on(async move {
            match cli.app {
                App::Productpage(args) => bookinfo::productpage::run(args).await,
                App::Details(args) => bookinfo::details::run(args).await,
                App::Reviews(args) => bookinfo::reviews::run(args).await,
                App::Ratings(args) => bookinfo::ratings::run(args).await,
                App::Ratingsdb(args) => bookinfo::ratingsdb::run(args).await,
                App::Echo(args) => echo::run(args).await,
                App::Get(args) => fetch::run(args).await,
                App::Load(args) => load::run(args).await,
                App::Send(args) => send::run(args).await,
                App::Grpc(args) => grpc::client::run(args).await,
                App::Ws(args) => websocket::run_client(args).await,
                App::Hold(args) => hold::run(args).await,
                App::ConnectFirst(args) => connect_first::run(&args),
            }
        })
}

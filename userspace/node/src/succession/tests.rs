use std::path::PathBuf;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use super::*;
use crate::signals::Asked;
use crate::supervise::Supervisor;

const LONG: Duration = Duration::from_secs(60);
const USUAL: Patience = Patience { prepare: LONG, take: LONG, stop: LONG };
/// Long enough for what must not happen to happen.
const MOMENT: Duration = Duration::from_millis(100);

/// Notes what is done with it.
struct Paper {
    done: mpsc::UnboundedSender<&'static str>,
    /// What enrolment that is being stopped waits for.
    thaw: Option<std::sync::Arc<Notify>>,
}

impl Paper {
    fn note(&self, what: &'static str) {
        let _ = self.done.send(what);
    }
}

impl Estate for Paper {
    async fn let_state_go(&mut self) {
        self.note("state left");
    }

    async fn take_state_up(&mut self) {
        self.note("state wanted");
    }

    async fn freeze(&mut self) {
        if let Some(thaw) = &self.thaw {
            self.note("freezing");
            thaw.notified().await;
            self.thaw = None;
        }
        self.note("frozen");
    }

    fn take_back(&mut self) -> anyhow::Result<()> {
        self.note("taken back");
        Ok(())
    }

    fn let_go(&mut self) {
        self.note("let go");
    }
}

/// A predecessor at work, and everything around it.
struct Bench {
    path: PathBuf,
    supervisor: Supervisor,
    ask: mpsc::Sender<Asked>,
    done: mpsc::UnboundedReceiver<&'static str>,
    /// How it has come to an end.
    task: JoinHandle<Result<&'static str, String>>,
}

impl Bench {
    fn new(name: &str, patience: Patience, thaw: Option<std::sync::Arc<Notify>>) -> Self {
        let dir = format!("fairlead-succession-{name}-{}", std::process::id());
        let path = std::env::temp_dir().join(dir).join("h.sock");
        let server = Server::bind(&path).unwrap();
        let (supervisor, mut ends) = Supervisor::new();
        let (ask, signals) = mpsc::channel(1);
        let (note, done) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            let mut estate = Paper { done: note, thaw };
            let mut calls = Calls { signals, ends: &mut ends, reread: &|| {} };
            let parting = serve(&mut estate, Some(&server), patience, &mut calls).await;
            match parting {
                Ok(Parting::Asked) => Ok("asked"),
                Ok(Parting::Left) => Ok("left"),
                Ok(Parting::HandedOver(_)) => Ok("handed over"),
                Err(error) => Err(error.to_string()),
            }
        });
        Self { path, supervisor, ask, done, task }
    }

    async fn expect(&mut self, all: &[&str]) {
        for what in all {
            let next = tokio::time::timeout(LONG, self.done.recv()).await.unwrap();
            assert_eq!(next, Some(*what));
        }
    }

    async fn nothing(&mut self) {
        let next = tokio::time::timeout(MOMENT, self.done.recv()).await;
        assert!(next.is_err(), "{next:?}");
    }

    async fn outcome(self) -> Result<&'static str, String> {
        let outcome = tokio::time::timeout(LONG, self.task).await.unwrap().unwrap();
        let _ = std::fs::remove_dir_all(self.path.parent().unwrap());
        outcome
    }
}

/// A successor's end of the line.
struct Line(BufReader<UnixStream>);

impl Line {
    async fn open(bench: &Bench) -> Self {
        let stream = UnixStream::connect(&bench.path).await.unwrap();
        let mut line = Self(BufReader::new(stream));
        let hello = format!("fairlead-handover 1 abi={}", fairlead_capture::ABI_VERSION);
        assert_eq!(line.ask(&hello).await, "beside");
        line
    }

    /// One that may take pods.
    async fn taking(bench: &mut Bench) -> Self {
        let mut line = Self::open(bench).await;
        assert_eq!(line.ask("take").await, "frozen");
        bench.expect(&["state left", "frozen"]).await;
        line
    }

    async fn ask(&mut self, word: &str) -> String {
        self.0.get_mut().write_all(format!("{word}\n").as_bytes()).await.unwrap();
        self.hear().await
    }

    /// Empty: the end.
    async fn hear(&mut self) -> String {
        let mut line = String::new();
        tokio::time::timeout(LONG, self.0.read_line(&mut line)).await.unwrap().unwrap();
        line.trim_end().to_owned()
    }
}

#[tokio::test]
async fn a_successor_gets_everything() {
    let mut bench = Bench::new("all", USUAL, None);
    let mut line = Line::taking(&mut bench).await;
    assert_eq!(line.ask("taken").await, "yours");
    bench.expect(&["let go"]).await;
    assert_eq!(bench.outcome().await, Ok("handed over"));
}

#[tokio::test]
async fn a_successor_that_is_called_off_has_stopped_before_pods_are_taken_back() {
    let patience = Patience { take: MOMENT / 10, ..USUAL };
    let mut bench = Bench::new("stops", patience, None);
    let mut line = Line::taking(&mut bench).await;
    assert_eq!(line.hear().await, "back");
    // It is in the middle of a pod, and may even believe to have all.
    line.0.get_mut().write_all(b"taken\n").await.unwrap();
    bench.nothing().await;
    drop(line);
    bench.expect(&["state wanted", "taken back"]).await;
    bench.nothing().await;
    // The next one is a new chance.
    drop(Line::open(&bench).await);
    bench.expect(&["state left", "state wanted"]).await;
    bench.ask.send(Asked::End).await.unwrap();
    assert_eq!(bench.outcome().await, Ok("asked"));
}

#[tokio::test]
async fn pods_are_taken_back_once_more_when_a_successor_stops_late() {
    let patience = Patience { take: MOMENT / 10, stop: MOMENT / 10, ..USUAL };
    let mut bench = Bench::new("late", patience, None);
    let mut lines = Vec::new();
    for _ in 0..2 {
        let mut line = Line::taking(&mut bench).await;
        assert_eq!(line.hear().await, "back");
        bench.expect(&["state wanted", "taken back"]).await;
        lines.push(line);
    }
    bench.nothing().await;
    for line in lines {
        drop(line);
        bench.expect(&["frozen", "taken back"]).await;
    }
    bench.nothing().await;
}

#[tokio::test]
async fn who_is_asked_to_end_leaves_everything_to_a_successor_that_prepares() {
    let mut bench = Bench::new("ends", USUAL, None);
    let mut line = Line::open(&bench).await;
    bench.expect(&["state left"]).await;
    bench.ask.send(Asked::End).await.unwrap();
    assert_eq!(line.hear().await, "", "the end of the line: nobody takes anything back");
    bench.expect(&["frozen", "let go"]).await;
    assert_eq!(bench.outcome().await, Ok("left"));
}

#[tokio::test]
async fn who_is_asked_to_end_leaves_everything_to_a_successor_that_takes_pods() {
    let mut bench = Bench::new("ends-taking", USUAL, None);
    let mut line = Line::taking(&mut bench).await;
    bench.ask.send(Asked::End).await.unwrap();
    assert_eq!(line.hear().await, "");
    bench.expect(&["frozen", "let go"]).await;
    assert_eq!(bench.outcome().await, Ok("left"));
}

#[tokio::test]
async fn who_is_asked_to_end_changes_nothing_any_more_when_the_successor_learns_of_it() {
    let thaw = std::sync::Arc::new(Notify::new());
    let mut bench = Bench::new("ends-late", USUAL, Some(thaw.clone()));
    let mut line = Line::open(&bench).await;
    line.0.get_mut().write_all(b"take\n").await.unwrap();
    bench.expect(&["state left", "freezing"]).await;
    bench.ask.send(Asked::End).await.unwrap();
    bench.expect(&["freezing"]).await;
    let mut byte = [0];
    assert!(tokio::time::timeout(MOMENT, line.0.read(&mut byte)).await.is_err(), "too early");
    thaw.notify_one();
    assert_eq!(line.hear().await, "");
    bench.expect(&["frozen", "let go"]).await;
    assert_eq!(bench.outcome().await, Ok("left"));
}

#[tokio::test]
async fn an_essential_part_that_ends_meanwhile_is_told() {
    let mut bench = Bench::new("fails", USUAL, None);
    let mut line = Line::open(&bench).await;
    bench.expect(&["state left"]).await;
    bench.supervisor.end("data", "it panicked".into());
    assert_eq!(line.hear().await, "");
    bench.expect(&["frozen"]).await;
    let error = bench.outcome().await.unwrap_err();
    assert!(error.contains("data: it panicked"), "{error}");
}

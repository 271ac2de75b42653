use std::path::PathBuf;

use fairlead_identity::{CaDirectory, StoreSettings};
use fairlead_types::NetnsCookie;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use super::*;

/// Answers of a daemon whose enrolment has the other end of the channel.
struct Bench {
    answers: Answers,
    passes: watch::Sender<u64>,
    dir: PathBuf,
}

impl Bench {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("fairlead-{name}-{}", std::process::id()));
        let ca = CaDirectory::open(&dir, &"cluster.local".parse().unwrap()).unwrap();
        let passes = watch::Sender::new(0);
        let answers = Answers {
            locator: Arc::new(Locator::new("/nonexistent".into(), NetnsCookie(0), false)),
            assigned: Arc::default(),
            snapshots: SnapshotHandle::new(Arc::default()),
            table: Table::default(),
            passes: passes.subscribe(),
            refuse_unknown: false,
            identity: IdentityStore::new(Arc::new(ca), StoreSettings::default()),
            wake: Arc::new(|| {}),
        };
        Self { answers, passes, dir }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn sandbox() -> Sandbox {
    Sandbox {
        container_id: "c1".into(),
        netns: "/proc/self/ns/net".into(),
        pod_namespace: "default".into(),
        pod_name: "a".into(),
        pod_uid: "u1".into(),
        ips: vec![],
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_nobody_tells_of_is_unknown_in_time() {
    let b = Bench::new("cni-unknown");
    assert_eq!(b.answers.answer(Request::Add(sandbox())).await, Some(Response::Unknown));
}

#[tokio::test]
async fn a_plugin_that_waits_when_enrolment_ends_is_hung_up_on() {
    let mut b = Bench::new("cni-freeze");
    let (mut plugin, daemon) = UnixStream::pair().unwrap();
    let request = fairlead_wire::cni::write_line(&Request::Add(sandbox())).unwrap();
    plugin.write_all(&request).await.unwrap();
    let answers = b.answers.clone();
    let asked = tokio::spawn(async move { server::one(daemon, &answers).await });
    // It waits for a pass: the place of the pod is told.
    while b.answers.locator.told().is_empty() {
        tokio::task::yield_now().await;
    }
    assert!(!asked.is_finished());
    // The successor takes the pods: enrolment is over here.
    b.passes = watch::Sender::new(0);
    let mut answer = Vec::new();
    plugin.read_to_end(&mut answer).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&answer), "", "the plugin is to ask the next daemon");
    asked.await.unwrap().unwrap();
}

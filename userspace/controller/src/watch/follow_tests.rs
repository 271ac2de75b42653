//! The way of a watch, against an API server that says what it is told to say.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::task::{self, Poll};

use bytes::Bytes;
use futures_util::future::{Ready, ready};
use http::{Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tonic::codegen::Service;

use super::*;
use crate::metrics::Metrics;
use crate::scope::World;

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// One answer of the server, in its order.
enum Answer {
    Json(StatusCode, Value),
    /// The events of a watch, which ends then.
    Watch(Vec<Value>),
    /// A watch that stays, without a word.
    Silence,
}

/// Answers in order, and keeps what was asked.
#[derive(Clone)]
struct Server(Arc<Mutex<(VecDeque<Answer>, Vec<String>)>>);

impl Server {
    fn new(answers: Vec<Answer>) -> Self {
        Self(Arc::new(Mutex::new((answers.into(), Vec::new()))))
    }

    fn asked(&self) -> Vec<String> {
        self.0.lock().1.clone()
    }
}

impl Service<Request<kube::client::Body>> for Server {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut task::Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<kube::client::Body>) -> Self::Future {
        let query = request.uri().query().unwrap_or_default();
        // What tells one from another, in a fixed order.
        let mut pairs: Vec<&str> = query
            .split('&')
            .filter(|pair| {
                let wanted = ["watch=", "resourceVersion=", "continue=", "limit=", "allowWatch"];
                wanted.iter().any(|name| pair.starts_with(name))
            })
            .collect();
        pairs.sort_unstable();
        let mut state = self.0.lock();
        state.1.push(pairs.join(" "));
        let (status, body) = match state.0.pop_front() {
            Some(Answer::Json(status, value)) => (status, text(value.to_string())),
            Some(Answer::Watch(events)) => {
                let lines: Vec<String> = events.iter().map(|event| format!("{event}\n")).collect();
                (StatusCode::OK, text(lines.concat()))
            }
            Some(Answer::Silence) | None => {
                let never = futures_util::stream::pending();
                (StatusCode::OK, StreamBody::new(never).boxed_unsync())
            }
        };
        let response = Response::builder().status(status).body(body);
        ready(Ok(response.expect("a response")))
    }
}

fn text(text: String) -> Body {
    Full::new(Bytes::from(text)).boxed_unsync()
}

fn object(name: &str, version: &str, host: &str) -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": {"name": name, "namespace": "n", "uid": name, "resourceVersion": version},
        "spec": {"hosts": [host]},
    })
}

fn list(version: &str, more: &str, items: &[Value]) -> Answer {
    let metadata = json!({"resourceVersion": version, "continue": more});
    let kind = "VirtualServiceList";
    let list = json!({
        "apiVersion": "networking.istio.io/v1", "kind": kind, "metadata": metadata, "items": items,
    });
    Answer::Json(StatusCode::OK, list)
}

fn event(kind: &str, object: &Value) -> Value {
    json!({"type": kind, "object": object})
}

/// Follows that server until it has been asked so often; what the metrics say then.
async fn followed(server: &Server, requests: usize) -> (Arc<World>, String) {
    let world = World::new("istio-system", "cluster.local");
    let metrics = Metrics::new(&world);
    let context = Arc::new(Context {
        client: kube::Client::new(server.clone(), "default"),
        world: Arc::clone(&world),
        metrics: Arc::clone(&metrics),
    });
    let kind = Kind::VirtualService;
    let resource = super::super::resource(kind, "v1");
    let task = tokio::spawn(follow(context, kind, resource, None, Arc::default()));
    // Time is that of the test: it passes when all wait.
    for _ in 0..10_000 {
        if server.asked().len() >= requests {
            break;
        }
        sleep(Duration::from_millis(50)).await;
    }
    sleep(Duration::from_millis(50)).await;
    task.abort();
    (world, metrics.scrape())
}

/// What is asked when a watch begins after that version.
fn watch(version: u32) -> String {
    format!("allowWatchBookmarks=true resourceVersion={version} watch=true")
}

fn has(metrics: &str, line: &str) {
    assert!(metrics.lines().any(|l| l == line), "no {line} in\n{metrics}");
}

/// A list in pages; a watch that goes on at the last bookmark; one whose version is gone (410), after
/// which all is listed again, and what is not there any more is taken out.
#[tokio::test(start_paused = true)]
async fn a_watch_goes_on_at_its_bookmark_and_begins_again_when_its_version_is_gone() {
    let bookmark = json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": {"resourceVersion": "20"}, "spec": {},
    });
    let gone = json!({
        "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
        "message": "too old resource version: 20 (29)", "reason": "Expired", "code": 410,
    });
    let server = Server::new(vec![
        list("10", "page-2", &[object("a", "3", "a")]),
        list("10", "", &[object("b", "4", "b")]),
        Answer::Watch(vec![
            event("MODIFIED", &object("a", "11", "x")),
            event("BOOKMARK", &bookmark),
        ]),
        Answer::Watch(vec![event("ERROR", &gone)]),
        list("30", "", &[object("a", "25", "y"), object("c", "26", "c")]),
        Answer::Silence,
    ]);
    let (world, metrics) = followed(&server, 6).await;
    assert_eq!(
        server.asked(),
        [
            "limit=500".to_owned(),
            "continue=page-2 limit=500".to_owned(),
            watch(10),
            watch(20),
            "limit=500".to_owned(),
            watch(30),
        ]
    );
    assert_eq!(world.census().objects.get(&Kind::VirtualService), Some(&2));
    has(&metrics, "fairlead_controller_relists_total 1");
    has(&metrics, "fairlead_controller_watch_errors_total 1");
    let count =
        |event| format!("pilot_k8s_cfg_events{{type=\"VirtualService\",event=\"{event}\"}}");
    has(&metrics, &format!("{} 3", count("add")));
    has(&metrics, &format!("{} 2", count("update")));
    has(&metrics, &format!("{} 1", count("delete")));
}

/// While the server is away, nothing is forgotten and nothing listed: the watch goes on where it was.
/// A list that ends in the middle takes nothing out.
#[tokio::test(start_paused = true)]
async fn an_outage_costs_nothing_but_errors() {
    let away = || Answer::Json(StatusCode::SERVICE_UNAVAILABLE, json!({}));
    let gone = || {
        let status = json!({
            "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
            "message": "The provided continue parameter is too old", "reason": "Expired",
            "code": 410,
        });
        Answer::Json(StatusCode::GONE, status)
    };
    let mut answers = vec![
        list("10", "", &[object("a", "3", "a"), object("b", "4", "b")]),
        Answer::Watch(vec![]),
    ];
    answers.extend((0..20).map(|_| away()));
    answers
        .extend([Answer::Watch(vec![event("DELETED", &object("a", "12", "a"))]), Answer::Silence]);
    let server = Server::new(answers);
    let (world, metrics) = followed(&server, 24).await;
    let asked = server.asked();
    assert!(asked[1..23].iter().all(|asked| *asked == watch(10)), "{asked:?}");
    assert_eq!(asked[23], watch(12));
    assert_eq!(world.census().objects.get(&Kind::VirtualService), Some(&1));
    has(&metrics, "fairlead_controller_relists_total 0");
    has(&metrics, "fairlead_controller_watch_errors_total 20");

    // The version is refused as soon as the watch is asked for; then the list breaks off twice.
    let all = [object("a", "3", "a"), object("b", "4", "b")];
    let server = Server::new(vec![
        list("10", "", &all),
        Answer::Watch(vec![event(
            "ERROR",
            &json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": "too old", "reason": "Gone", "code": 410,
            }),
        )]),
        list("40", "page-2", &all[..1]),
        gone(),
        list("40", "page-2", &all[..1]),
        away(),
    ]);
    let (world, metrics) = followed(&server, 7).await;
    assert_eq!(server.asked()[3], "continue=page-2 limit=500");
    assert_eq!(server.asked()[4], "limit=500");
    assert_eq!(world.census().objects.get(&Kind::VirtualService), Some(&2));
    has(&metrics, "fairlead_controller_relists_total 0");
}

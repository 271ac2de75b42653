//! The tries of one request: endpoint, timeouts, retries.

use std::pin::Pin;

use fairlead_config::model::Snapshot;
use fairlead_policy::filter::retry::{Outcome, RetryPolicy};
use fairlead_types::ResponseFlags;
use http::header::HeaderValue;
use http::request::Parts;
use http::{Request, Response, Version};
use tokio::time::{Sleep, sleep};

use super::arrive::{self, Counted, is_idempotent};
use super::exchange::Exchange;
use super::headers;
use super::local_reply::LocalReply;
use super::send::{self, Answer, TryError};
use super::service::Plan;
use crate::body::Body;
use crate::choice::{Choice, Chosen};
use crate::labels::{self, Sides};
use crate::outbound::Outgoing;
use crate::random::random_u32;
use crate::reach::Way;
use crate::transport::Wire;

/// Tries of one request altogether, whatever a policy says.
const TRIES_MAX: u32 = 32;
/// How often a request is sent again, beside what a policy says, when the other node has not looked
/// at it: sessions end while they are used.
const UNSEEN_MAX: u32 = 3;

/// Sends a request until there is an answer to pass on, or the last reply that there is for it.
pub(super) async fn forward(
    outgoing: &Outgoing,
    snapshot: &Snapshot,
    plan: &Plan<'_>,
    (parts, body): (Parts, Body),
    exchange: &mut Exchange,
    deadline: &mut Option<Pin<Box<Sleep>>>,
) -> Result<Response<Body>, LocalReply> {
    let retry =
        plan.filters().and_then(|f| f.retry.as_ref()).unwrap_or(&snapshot.mesh.default_retry);
    outgoing.caller.warm(snapshot, &plan.choice);
    let mut source = Source::new(parts, body, exchange);
    let mut tried: Vec<usize> = Vec::new();
    let mut attempt = 1;
    let mut stale_repeated = false;
    let mut unseen = 0;
    loop {
        let excluded = if retry.ignore_previous_hosts { &tried[..] } else { &[] };
        let Some(chosen) = plan.choice.pick(excluded) else {
            let reason = plan.choice.why_none().into();
            return Err(LocalReply { reason, ..LocalReply::no_healthy_upstream() });
        };
        let index = chosen.index;
        let Some(request) = source.request(attempt) else {
            return Err(LocalReply::upstream_reset("the request cannot be sent again".into()));
        };
        let tried_once = one(outgoing, snapshot, &plan.choice, chosen, request, exchange);
        let result = bounded(tried_once, retry, deadline).await;
        let (outcome, result) = match result {
            Ok(answer) => (outcome_of(&answer.response, exchange.grpc), Ok(answer)),
            Err(error) if error.stale && !stale_repeated && source.may_repeat_stale() => {
                stale_repeated = true;
                continue;
            }
            Err(error) if error.unseen && unseen < UNSEEN_MAX && source.can_repeat() => {
                unseen += 1;
                continue;
            }
            Err(error) => (error.outcome, Err(error)),
        };
        let again = attempt < TRIES_MAX
            && retry.should_retry(outcome, attempt)
            && !deadline.as_ref().is_some_and(|d| d.is_elapsed())
            && source.can_repeat();
        if again {
            if let Err(error) = &result {
                exchange.transport_failure = Some(error.reply.reason.to_string());
            }
            // An answer that is not passed on ends its connection.
            drop(result);
            tried.push(index);
            let wait = sleep(retry.backoff(attempt, random_u32()));
            match deadline {
                Some(deadline) => tokio::select! {
                    () = wait => {}
                    () = deadline.as_mut() => return Err(LocalReply::timeout(false)),
                },
                None => wait.await,
            }
            attempt += 1;
            continue;
        }
        return match result {
            Ok(answer) => {
                // A failure that would be tried again, were there tries left (Envoy's URX).
                if attempt > retry.attempts && attempt > 1 && retry.should_retry(outcome, 1) {
                    exchange.flags = ResponseFlags::UpstreamRetryLimitExceeded;
                }
                exchange.upstream_local = answer.local;
                exchange.lease = answer.lease;
                Ok(answer.response)
            }
            Err(error) => {
                exchange.transport_failure = Some(error.reply.reason.to_string());
                Err(error.reply)
            }
        };
    }
}

fn outcome_of(response: &Response<Body>, grpc: bool) -> Outcome {
    let headers = response.headers();
    if headers.contains_key("x-envoy-ratelimited") {
        return Outcome::RateLimited;
    }
    let grpc_status = if grpc { send::early_grpc_status(headers) } else { None };
    Outcome::Response { status: response.status(), grpc_status }
}

/// A try within `perTryTimeout` and the request's timeout.
async fn bounded(
    attempt: impl Future<Output = Result<Answer, TryError>>,
    retry: &RetryPolicy,
    deadline: &mut Option<Pin<Box<Sleep>>>,
) -> Result<Answer, TryError> {
    let timed_out = |per_try| {
        let outcome = if per_try { Outcome::PerTryTimeout } else { Outcome::Overflow };
        TryError::new(outcome, LocalReply::timeout(per_try))
    };
    let within_try = async {
        match retry.per_try_timeout {
            Some(limit) => {
                tokio::time::timeout(limit, attempt).await.unwrap_or_else(|_| Err(timed_out(true)))
            }
            None => attempt.await,
        }
    };
    match deadline {
        Some(deadline) => tokio::select! {
            biased;
            result = within_try => result,
            () = deadline.as_mut() => Err(timed_out(false)),
        },
        None => within_try.await,
    }
}

/// One try at one endpoint.
async fn one(
    outgoing: &Outgoing,
    snapshot: &Snapshot,
    choice: &Choice,
    chosen: Chosen,
    request: Request<Body>,
    exchange: &mut Exchange,
) -> Result<Answer, TryError> {
    let caller = &outgoing.caller;
    let addr = chosen.addr;
    exchange.upstream = Some(addr);
    exchange.parties.sides = Sides::Source;
    exchange.parties.verified = None;
    if let Some(workload) = &chosen.workload {
        let telemetry = &caller.shared.telemetry;
        exchange.parties.destination = labels::workload(telemetry, snapshot, workload);
        exchange.upstream_identity = workload.enrolled.then(|| workload.identity.clone());
    }
    let way = caller.way(snapshot, choice, &chosen);
    let declared = match choice {
        Choice::Cluster(cluster, _) => cluster.protocol.is_http2(),
        Choice::Direct { workload, .. } => workload.as_ref().is_some_and(|w| {
            snapshot.target_port(&w.id, addr.port()).is_some_and(|p| p.protocol.is_http2())
        }),
    };
    let http2 = declared || request.version() == Version::HTTP_2;
    let timeout = choice.connect_timeout();
    exchange.endpoint = Some(chosen);
    match way? {
        Way::Local { pod, inbound } => {
            caller.reachable(&pod, addr, timeout).await?;
            exchange.parties.sides = Sides::Both;
            exchange.parties.verified = Some(caller.workload.identity.clone());
            let facts = caller.facts(addr);
            arrive::deliver_local(&pod, &inbound, &facts, http2, timeout, request).await
        }
        Way::Plain => {
            exchange.unproven();
            send::plain(caller, addr, http2, timeout, request).await
        }
        Way::Mesh(target) => {
            let service = choice.as_cluster().map(|c| &*c.service.host);
            let meta = caller.meta(addr, service);
            match target.wire() {
                Wire::Native => {
                    let request = with_version(request, http2);
                    let transport = &caller.shared.transport;
                    let (mut response, local) =
                        transport.request_from(&target, &meta, request).await?;
                    // Nothing reached the application: another endpoint may well take it.
                    if response.headers_mut().remove(headers::UNDELIVERED).is_some() {
                        return Err(TryError::undelivered(addr));
                    }
                    Ok(Answer { response, local: Some(local), lease: None })
                }
                Wire::Hbone => {
                    send::tunnelled(caller, &target, &meta, http2, timeout, request).await
                }
            }
        }
    }
}

/// The version that the destination's node is to speak with the application.
pub(super) fn with_version<B>(mut request: Request<B>, http2: bool) -> Request<B> {
    *request.version_mut() = if http2 { Version::HTTP_2 } else { Version::HTTP_11 };
    request
}

/// Where the tries get the request from.
struct Source {
    parts: Parts,
    body: Option<Counted>,
    /// The body has been handed out and cannot be had again.
    spent: bool,
    empty: bool,
}

impl Source {
    fn new(parts: Parts, body: Body, exchange: &Exchange) -> Self {
        // Also where the policy knows no retry: the other node may not look at it.
        let body = Counted::kept(body, exchange);
        Self { empty: body.is_empty(), parts, body: Some(body), spent: false }
    }

    /// The request for try number `attempt`; `None` when its body is gone.
    fn request(&mut self, attempt: u32) -> Option<Request<Body>> {
        let mut parts = self.parts.clone();
        parts.headers.insert(headers::ATTEMPT_COUNT, HeaderValue::from(attempt));
        let body = match &mut self.body {
            _ if self.empty => Body::Empty,
            Some(Counted::Kept(replay)) if replay.is_whole() => Body::boxed(replay.reader()),
            body @ Some(Counted::Known(_)) if !self.spent => {
                self.spent = true;
                match body.take() {
                    Some(Counted::Known(body)) => body,
                    _ => return None,
                }
            }
            _ => return None,
        };
        Some(Request::from_parts(parts, body))
    }

    /// Whether there can be another try.
    fn can_repeat(&self) -> bool {
        self.empty || matches!(&self.body, Some(Counted::Kept(replay)) if replay.is_whole())
    }

    fn may_repeat_stale(&self) -> bool {
        self.can_repeat() && is_idempotent(&self.parts.method)
    }
}

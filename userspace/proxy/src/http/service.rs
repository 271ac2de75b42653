//! Requests of a pod of this node, on their way out: route, fault, rewrite, and then the tries
//! ([`super::attempt`]).

use std::pin::Pin;
use std::sync::Arc;

use fairlead_config::model::{AuthorityTarget, Outbound, OutboundPolicy, ServicePort, Snapshot};
use fairlead_policy::authz::path::{self, Normalization};
use fairlead_policy::filter::HttpFilters;
use fairlead_policy::filter::fault::AbortWith;
use fairlead_policy::route::{
    ClusterId, HttpAction, HttpRouteTable, Selected, WeightedDestination,
};
use fairlead_types::ResponseFlags;
use http::header::HeaderValue;
use http::request::Parts;
use http::{Request, Response, StatusCode};
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use super::attempt;
use super::exchange::{Exchange, Reported};
use super::headers;
use super::local_reply::LocalReply;
use super::request::{self, view};
use super::send;
use super::server::Switch;
use super::upgrade;
use crate::body::Body;
use crate::choice::Choice;
use crate::outbound::Outgoing;
use crate::random::random_u32;

/// Where a request goes, and what is done to it on the way.
pub(super) struct Plan<'a> {
    /// The route, with the match that selected it; none where no VirtualService has an opinion.
    selected: Option<Selected<'a>>,
    destination: Option<&'a WeightedDestination>,
    pub(super) choice: Choice,
    /// `upstream_cluster`.
    name: Arc<str>,
}

impl<'a> Plan<'a> {
    pub(super) fn filters(&self) -> Option<&'a HttpFilters> {
        self.selected.map(|s| &s.route.filters)
    }
}

/// One request of a captured connection.
pub(crate) async fn outbound(
    outgoing: Arc<Outgoing>,
    request: Request<Body>,
    switches: Option<Switch>,
) -> Response<Reported> {
    let shared = &outgoing.caller.shared;
    let snapshot = shared.snapshots.load();
    let client = outgoing.caller.client_for(outgoing.dst.0).0;
    let parties = outgoing.parties(&snapshot);
    let mut exchange = Exchange::new(shared, parties, &request, client, outgoing.dst.0);
    let planned = prepare(&outgoing, &snapshot, request, &mut exchange).await;
    let (plan, parts, body) = match planned {
        Ok(planned) => planned,
        Err(reply) => {
            let response = exchange.local(&reply);
            return exchange.respond(response, None);
        }
    };
    if let Some(downstream) = switches {
        let request = Request::from_parts(parts, ());
        return upgrade::outbound(&outgoing, &snapshot, &plan, request, downstream, exchange).await;
    }
    let mut deadline: Option<Pin<Box<Sleep>>> = plan
        .filters()
        .and_then(|f| f.timeout)
        .map(|timeout| Box::pin(sleep_until(Instant::now() + timeout)));
    let answer =
        attempt::forward(&outgoing, &snapshot, &plan, (parts, body), &mut exchange, &mut deadline)
            .await;
    let mut response = match answer {
        Ok(mut response) => {
            exchange.service_time = Some(exchange.elapsed());
            send::pass_back(&mut response, false);
            let millis = u64::try_from(exchange.elapsed().as_millis()).unwrap_or(u64::MAX);
            response.headers_mut().insert(headers::SERVICE_TIME, HeaderValue::from(millis));
            response
        }
        Err(reply) => exchange.local(&reply),
    };
    edit_response(&plan, &mut response);
    exchange.respond(response, deadline)
}

/// Response operations: the destination's, then the route's, which win. They apply to what the
/// proxy answers itself too, as in Envoy.
fn edit_response(plan: &Plan<'_>, response: &mut Response<Body>) {
    if let Some(destination) = plan.destination {
        destination.headers.response.apply(response.headers_mut());
    }
    if let Some(filters) = plan.filters() {
        filters.headers.response.apply(response.headers_mut());
    }
}

/// Everything that comes before the first try.
async fn prepare<'a>(
    outgoing: &'a Outgoing,
    snapshot: &'a Snapshot,
    mut request: Request<Body>,
    exchange: &mut Exchange,
) -> Result<(Plan<'a>, Parts, Body), LocalReply> {
    let normalization = snapshot.mesh.path_normalization;
    request::canonical(&mut request, normalization, || outgoing.dst.to_string())?;
    let scheme = if request.uri().scheme_str() == Some("https") { "https" } else { "http" };
    headers::first_hop(request.headers_mut(), scheme);
    exchange.note_request_id(request.headers());
    let upgrade = headers::is_upgrade(&request);
    headers::strip_hop_by_hop(request.headers_mut(), upgrade);
    let (mut parts, body) = request.into_parts();
    let plan = plan(outgoing, snapshot, &parts, exchange)?;
    if let Some(cluster) = plan.choice.as_cluster() {
        exchange.parties.service = exchange.shared().labels.service(&cluster.service);
    }
    exchange.cluster = Some(Arc::clone(&plan.name));
    if let Some(filters) = plan.filters() {
        inject(filters, exchange).await?;
        rewrite(&plan, filters, normalization, &mut parts)?;
    }
    Ok((plan, parts, body))
}

/// Fault injection: the delay, then the abort.
async fn inject(filters: &HttpFilters, exchange: &mut Exchange) -> Result<(), LocalReply> {
    let Some(fault) = &filters.fault else { return Ok(()) };
    let injected = fault.decide(random_u32(), random_u32());
    if let Some(delay) = injected.delay {
        sleep(delay).await;
        exchange.flags = ResponseFlags::DelayInjected;
    }
    match injected.abort {
        None => Ok(()),
        Some(AbortWith::Http(status)) => Err(LocalReply::fault(status, None)),
        Some(AbortWith::Grpc(status)) => {
            Err(LocalReply::fault(StatusCode::OK, Some(status.code())))
        }
    }
}

/// Rewrites and header operations of the request.
fn rewrite(
    plan: &Plan<'_>,
    filters: &HttpFilters,
    normalization: Normalization,
    parts: &mut Parts,
) -> Result<(), LocalReply> {
    if let Some(rewrite) = &filters.rewrite {
        let matched = plan.selected.and_then(|s| s.matched);
        let path = rewrite
            .path(parts.uri.path(), matched)
            .map_err(|error| LocalReply::bad_request(error.to_string()))?;
        if let Some(path) = path {
            let before = parts.uri.path_and_query().map_or("/", |p| p.as_str());
            if let Ok(before) = HeaderValue::from_str(before) {
                parts.headers.insert(headers::ORIGINAL_PATH, before);
            }
            // What the destination's policy judges and what the application gets is one form, also
            // where no other node stands between.
            let path = path::normalize(&path, normalization)
                .map_err(|error| LocalReply::bad_request(error.to_string()))?;
            parts.uri = request::with_path(&parts.uri, &path)?;
        }
        if let Some(authority) = &rewrite.authority {
            request::set_authority(parts, authority)?;
        }
    }
    let edits = plan.destination.map(|d| &d.headers.request);
    for edit in edits.into_iter().chain([&filters.headers.request]) {
        edit.apply(&mut parts.headers);
        if let Some(authority) = edit.authority() {
            request::set_authority(parts, authority)?;
        }
    }
    Ok(())
}

fn plan<'a>(
    outgoing: &'a Outgoing,
    snapshot: &'a Snapshot,
    parts: &Parts,
    exchange: &mut Exchange,
) -> Result<Plan<'a>, LocalReply> {
    let namespace = &*outgoing.caller.workload.namespace;
    let client = snapshot.client(&outgoing.caller.workload);
    let authority = parts.uri.authority().map_or("", |a| a.as_str());
    let asked = outgoing.dst.0;
    // The address chooses the service; the authority has a word only where it is none's
    // (docs/decisions/0003).
    let by_authority = match &outgoing.target {
        Outbound::Service(_) => None,
        Outbound::Workload(_) | Outbound::Unknown => {
            snapshot.by_authority(authority, namespace, asked.port())
        }
    };
    if matches!(outgoing.target, Outbound::Unknown)
        && let Some(AuthorityTarget::VirtualHost(host)) = by_authority
        && let Some(table) = host.http(client, asked.port())
    {
        return by_table(outgoing, snapshot, parts, table, asked.port(), exchange);
    }
    match (&outgoing.target, by_authority) {
        (Outbound::Service(port), _)
        | (Outbound::Unknown, Some(AuthorityTarget::Service(port))) => {
            by_service(outgoing, snapshot, parts, port, exchange)
        }
        // A pod of a headless service: its routes hold if there are any, else the pod gets it.
        (Outbound::Workload(_), Some(AuthorityTarget::Service(port)))
            if port.service.is_headless()
                && port.routes(client).http(&outgoing.source()).is_some() =>
        {
            by_service(outgoing, snapshot, parts, port, exchange)
        }
        (Outbound::Unknown, _) if snapshot.mesh.outbound == OutboundPolicy::RegistryOnly => {
            Err(LocalReply::not_in_registry(format!(
                "nothing in the registry is at {asked} or named {authority} (REGISTRY_ONLY)"
            )))
        }
        (Outbound::Workload(_) | Outbound::Unknown, _) => {
            let (choice, name) = outgoing.direct(snapshot);
            Ok(Plan { selected: None, destination: None, choice, name })
        }
    }
}

fn by_service<'a>(
    outgoing: &'a Outgoing,
    snapshot: &'a Snapshot,
    parts: &Parts,
    port: &'a ServicePort,
    exchange: &mut Exchange,
) -> Result<Plan<'a>, LocalReply> {
    let routes = port.routes(snapshot.client(&outgoing.caller.workload));
    match routes.http(&outgoing.source()) {
        Some(table) => by_table(outgoing, snapshot, parts, table, port.number, exchange),
        None => {
            exchange.route = Some("default".into());
            let (choice, name) = cluster(outgoing, snapshot, routes.default_cluster)?;
            Ok(Plan { selected: None, destination: None, choice, name })
        }
    }
}

fn by_table<'a>(
    outgoing: &'a Outgoing,
    snapshot: &'a Snapshot,
    parts: &Parts,
    table: &'a HttpRouteTable,
    port: u16,
    exchange: &mut Exchange,
) -> Result<Plan<'a>, LocalReply> {
    let view = view(&parts.method, &parts.uri, &parts.headers);
    let selected =
        table.select(&view, &outgoing.source(), port).ok_or_else(LocalReply::no_route)?;
    exchange.route = Some(Arc::clone(&selected.route.name));
    let weighted = match &selected.route.action {
        HttpAction::Forward(weighted) => weighted,
        HttpAction::NoCluster => {
            return Err(LocalReply::no_cluster(format!(
                "no destination of route {} exists",
                selected.route.name
            )));
        }
    };
    let destination = weighted.pick(random_u32());
    let (choice, name) = cluster(outgoing, snapshot, destination.cluster)?;
    Ok(Plan { selected: Some(selected), destination: Some(destination), choice, name })
}

fn cluster(
    outgoing: &Outgoing,
    snapshot: &Snapshot,
    id: ClusterId,
) -> Result<(Choice, Arc<str>), LocalReply> {
    let cluster = snapshot.cluster(id).ok_or_else(|| {
        LocalReply::no_cluster("the destination's service or subset does not exist")
    })?;
    let choice = Choice::cluster(snapshot, cluster, outgoing.dst.0);
    Ok((choice, Arc::clone(&cluster.name)))
}

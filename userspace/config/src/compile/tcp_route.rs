//! VirtualService `tcp[]` to TCP route tables.
//!
//! A connection that no route matches goes to the service itself, as with Istio; a table says so
//! by having no route for it. What cannot be expressed refuses the connection.

use fairlead_api::networking as api;
use fairlead_policy::filter::headers::HeaderOps;
use fairlead_policy::route::{TcpMatch, TcpRoute};
use ipnet::IpNet;

use super::problem::Report;
use super::route::{Choice, Findings, RouteContext, labels, namespace, port_fits};
use super::virtual_service::applies_to_mesh;
use super::workload::parse_net;
use crate::source::PORTS_REFUSED;

/// Name of a TCP route; VirtualService gives it none.
const NAME: &str = "default";

/// The routes of a VirtualService for one port; empty when none concerns it.
pub(super) fn compile(context: &RouteContext<'_>, findings: &mut Findings<'_>) -> Vec<TcpRoute> {
    let routes = context.entry.object.spec.tcp.iter().enumerate();
    routes.filter_map(|(i, route)| compile_route(route, i, context, findings)).collect()
}

/// Stands for `tls[]` routes that concern the port, which are not supported yet: the connection
/// is refused rather than sent where nobody meant it to go.
pub(super) fn refuse_tls(
    context: &RouteContext<'_>,
    findings: &mut Findings<'_>,
) -> Option<TcpRoute> {
    let concerns = |route: &api::TlsRoute| {
        route.matches.is_empty()
            || route
                .matches
                .iter()
                .any(|m| applies_to_mesh(&m.gateways) && port_fits(m.port, context.port))
    };
    let index = context.entry.object.spec.tls.iter().position(concerns)?;
    findings.report.error(format!("spec.tls[{index}]"), PORTS_REFUSED);
    Some(TcpRoute { name: NAME.into(), matches: Box::default(), destinations: None })
}

fn compile_route(
    route: &api::TcpRoute,
    index: usize,
    context: &RouteContext<'_>,
    findings: &mut Findings<'_>,
) -> Option<TcpRoute> {
    let field = format!("spec.tcp[{index}]");
    let mut sound = true;
    let mut matches = Vec::with_capacity(route.matches.len());
    for (i, written) in route.matches.iter().enumerate() {
        if !applies_to_mesh(&written.gateways) || !port_fits(written.port, context.port) {
            continue;
        }
        let field = format!("{field}.match[{i}]");
        let (compiled, complete) = compile_match(written, &field, &mut findings.report);
        sound &= complete;
        matches.push(compiled);
    }
    if matches.is_empty() && !route.matches.is_empty() {
        return None;
    }
    let choices = route
        .route
        .iter()
        .map(|choice| Choice {
            destination: choice.destination.as_ref(),
            weight: choice.weight,
            headers: HeaderOps::default(),
        })
        .collect();
    let destinations = context.weighted(choices, &format!("{field}.route"), findings);
    Some(TcpRoute {
        name: NAME.into(),
        matches: matches.into(),
        destinations: destinations.filter(|_| sound),
    })
}

/// A match, and whether it says all that was written.
fn compile_match(written: &api::L4Match, field: &str, report: &mut Report<'_>) -> (TcpMatch, bool) {
    let mut complete = true;
    let mut subnet = |text: &str, name: &str| -> Option<IpNet> {
        let parsed = parse_net(text);
        if parsed.is_none() {
            complete = false;
            report.error(
                format!("{field}.{name}"),
                format!("{text:?} is no CIDR and no address; the route refuses its connections"),
            );
        }
        parsed
    };
    // One subnet less would narrow the match: if any cannot be read, all addresses are meant.
    let destination_subnets: Option<Box<[IpNet]>> =
        written.destination_subnets.iter().map(|text| subnet(text, "destinationSubnets")).collect();
    let source_subnet = match written.source_subnet.as_str() {
        "" => None,
        text => subnet(text, "sourceSubnet"),
    };
    let compiled = TcpMatch {
        destination_subnets: destination_subnets.unwrap_or_default(),
        port: written.port.and_then(|port| u16::try_from(port).ok()),
        source_labels: labels(&written.source_labels),
        source_namespace: namespace(&written.source_namespace),
        source_subnet,
    };
    (compiled, complete)
}

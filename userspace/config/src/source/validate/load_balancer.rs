//! Load balancing of a DestinationRule (Istio `validateLoadBalancer`, `ValidateLocalityLbSetting`).

use fairlead_api::networking::{ConsistentHash, LoadBalancer, LocalityLbSetting, OutlierDetection};

use super::checks;
use crate::source::path::Path;
use crate::source::sink::Sink;

/// Envoy's bound of a Maglev table.
const MAX_MAGLEV: u64 = 5_000_011;

pub(super) fn load_balancer(
    value: &LoadBalancer,
    outlier: Option<&OutlierDetection>,
    at: &Path<'_>,
    sink: &mut Sink<'_>,
) {
    if let Some(hash) = &value.consistent_hash {
        let at = at.field("consistentHash");
        if value.simple.is_some() {
            sink.error(&at, "stands beside simple", "one of simple and consistentHash");
        }
        consistent_hash(hash, &at, sink);
    }
    if let Some(locality) = &value.locality_lb_setting {
        locality_setting(locality, outlier, &at.field("localityLbSetting"), sink);
    }
    checks::duration(sink, &at.field("warmupDurationSecs"), value.warmup_duration_secs);
    if let Some(warmup) = &value.warmup {
        let at = at.field("warmup");
        match warmup.duration {
            None => sink.error(&at.field("duration"), "is missing", "a duration"),
            duration => checks::duration(sink, &at.field("duration"), duration),
        }
        if warmup.minimum_percent.is_some_and(|percent| !(0.0..=100.0).contains(&percent)) {
            sink.error(&at.field("minimumPercent"), "is not a percentage", "0 to 100");
        }
        if warmup.aggression.is_some_and(|aggression| aggression < 1.0) {
            sink.error(&at.field("aggression"), "is too small", "1.0 or more");
        }
    }
}

fn consistent_hash(value: &ConsistentHash, at: &Path<'_>, sink: &mut Sink<'_>) {
    const KEYS: &str = "one of httpHeaderName, httpCookie, useSourceIp, httpQueryParameterName";
    let keys = [
        value.http_header_name.is_some(),
        value.http_cookie.is_some(),
        value.use_source_ip.is_some(),
        value.http_query_parameter_name.is_some(),
    ];
    match keys.iter().filter(|set| **set).count() {
        0 => sink.error(at, "does not say of what", KEYS),
        1 => {}
        _ => sink.error(at, "has several keys", KEYS),
    }
    if value.http_cookie.as_ref().is_some_and(|cookie| !checks::is_token(&cookie.name)) {
        let cookie = at.field("httpCookie");
        sink.error(&cookie.field("name"), "is not a cookie name", "an HTTP token");
    }
    if value.ring_hash.is_some() && value.maglev.is_some() {
        sink.error(&at.field("maglev"), "stands beside ringHash", "one of the two");
    }
    if value.minimum_ring_size.is_some_and(|size| size != 0) {
        let field = at.field("minimumRingSize");
        sink.warn(&field, "is deprecated", "ringHash: {minimumRingSize: …}");
        if value.ring_hash.is_some() || value.maglev.is_some() {
            sink.error(&field, "stands beside ringHash or maglev", "one of them");
        }
    }
    if let Some(size) = value.maglev.and_then(|maglev| maglev.table_size)
        && (size >= MAX_MAGLEV || !is_prime(size))
    {
        let at = at.field("maglev");
        let message = format!("{size} is not a table size");
        sink.error(&at.field("tableSize"), message, "a prime below 5000011");
    }
}

fn is_prime(number: u64) -> bool {
    number >= 2
        && (2..).take_while(|factor| factor * factor <= number).all(|f| !number.is_multiple_of(f))
}

fn locality_setting(
    value: &LocalityLbSetting,
    outlier: Option<&OutlierDetection>,
    at: &Path<'_>,
    sink: &mut Sink<'_>,
) {
    let failover = !(value.failover.is_empty() && value.failover_priority.is_empty());
    if failover && !value.distribute.is_empty() {
        let message = "stands beside failover or failoverPriority";
        sink.error(&at.field("distribute"), message, "distribute, or the other two");
    }
    let distribute = at.field("distribute");
    for (index, one) in value.distribute.iter().enumerate() {
        let at = distribute.index(index);
        let total: u64 = one.to.values().map(|share| u64::from(*share)).sum();
        if total != 100 {
            sink.error(&at.field("to"), format!("the shares sum up to {total}"), "100");
        }
        if one.to.values().any(|share| *share == 0) {
            sink.error(&at.field("to"), "a share is 0", "1 to 100");
        }
    }
    let failovers = at.field("failover");
    for (index, one) in value.failover.iter().enumerate() {
        let at = failovers.index(index);
        if one.from == one.to {
            sink.error(&at, "leads to the region that fails", "two regions");
        }
        if one.from.contains(['/', '*']) || one.to.contains(['/', '*']) {
            sink.error(&at, "names more than a region", "regions alone");
        }
    }
    if failover && outlier.is_none() {
        let message = "has no effect without outlierDetection";
        sink.warn(at, message, "outlierDetection in the same policy");
    }
}

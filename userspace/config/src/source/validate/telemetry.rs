//! Telemetry (Istio `ValidateTelemetry`).

use fairlead_api::telemetry::{CustomTag, TagOperation, Telemetry};

use super::{checks, selector};
use crate::source::path::Path;
use crate::source::sink::Sink;

pub(in super::super) fn telemetry(object: &Telemetry, sink: &mut Sink<'_>) {
    let (root, spec) = (Path::Root, &object.spec);
    let at = root.field("spec");
    let (single, several) = (spec.target_ref.as_ref(), spec.target_refs.as_slice());
    selector::attachment(spec.selector.as_ref(), single, several, &at, sink);
    let tracing = at.field("tracing");
    for (index, one) in spec.tracing.iter().enumerate() {
        let at = tracing.index(index);
        if one.providers.len() > 1 {
            let message = "spans go to one provider";
            sink.error(&at.field("providers"), message, "one provider");
        }
        if one.random_sampling_percentage.is_some_and(|share| !(0.0..=100.0).contains(&share)) {
            let field = at.field("randomSamplingPercentage");
            sink.error(&field, "is not a percentage", "0 to 100");
        }
        let tags = at.field("customTags");
        for (name, tag) in &one.custom_tags {
            let CustomTag { literal, environment, header, formatter } = tag;
            let set =
                [literal.is_some(), environment.is_some(), header.is_some(), formatter.is_some()];
            if name.is_empty() || set.iter().filter(|set| **set).count() != 1 {
                let message = "does not say clearly what the tag is";
                let allowed = "a name, with one of literal, environment, header, formatter";
                sink.error(&tags.key(name), message, allowed);
            }
        }
    }
    let metrics = at.field("metrics");
    for (index, one) in spec.metrics.iter().enumerate() {
        let at = metrics.index(index);
        checks::duration(sink, &at.field("reportingInterval"), one.reporting_interval);
        let overrides = at.field("overrides");
        for (index, one) in one.overrides.iter().enumerate() {
            let at = overrides.index(index);
            let twice = |m: &fairlead_api::telemetry::MetricSelector| {
                m.metric.is_some() && m.custom_metric.is_some()
            };
            if one.matches.as_ref().is_some_and(twice) {
                let message = "names two metrics";
                sink.error(&at.field("match"), message, "one of metric and customMetric");
            }
            let tags = at.field("tagOverrides");
            for (name, tag) in &one.tag_overrides {
                let remove = tag.operation == TagOperation::Remove;
                if remove != tag.value.is_empty() {
                    let message = "the value does not fit the operation";
                    sink.error(&tags.key(name), message, "a value with UPSERT, none with REMOVE");
                }
            }
        }
    }
}

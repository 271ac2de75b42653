//! WasmPlugin and TrafficExtension (Istio `ValidateWasmPlugin`, `ValidateTrafficExtension`).

use fairlead_api::extensions::{
    EnvValueSource, TrafficExtension, TrafficSelector, VmConfig, WasmPlugin,
};

use super::{checks, selector};
use crate::source::path::Path;
use crate::source::sink::Sink;

/// Where modules come from.
const SCHEMES: &[&str] = &["http", "https", "file", "oci"];

pub(in super::super) fn wasm_plugin(object: &WasmPlugin, sink: &mut Sink<'_>) {
    let (root, spec) = (Path::Root, &object.spec);
    let at = root.field("spec");
    let (single, several) = (spec.target_ref.as_ref(), spec.target_refs.as_slice());
    selector::attachment(spec.selector.as_ref(), single, several, &at, sink);
    module(&spec.url, &spec.sha256, &at, sink);
    virtual_machine(spec.vm_config.as_ref(), &at.field("vmConfig"), sink);
    traffic(&spec.matches, &at.field("match"), sink);
}

pub(in super::super) fn traffic_extension(object: &TrafficExtension, sink: &mut Sink<'_>) {
    let (root, spec) = (Path::Root, &object.spec);
    let at = root.field("spec");
    selector::attachment(spec.selector.as_ref(), None, &spec.target_refs, &at, sink);
    if spec.wasm.is_some() == spec.lua.is_some() {
        sink.error(&at, "does not say clearly what runs", "one of wasm and lua");
    }
    if let Some(wasm) = &spec.wasm {
        let at = at.field("wasm");
        module(&wasm.url, &wasm.sha256, &at, sink);
        virtual_machine(wasm.vm_config.as_ref(), &at.field("vmConfig"), sink);
    }
    if spec.lua.as_ref().is_some_and(|lua| lua.inline_code.is_empty()) {
        let at = at.field("lua");
        sink.error(&at.field("inlineCode"), "is missing", "a script");
    }
    traffic(&spec.matches, &at.field("match"), sink);
}

fn module(url: &str, sha256: &str, at: &Path<'_>, sink: &mut Sink<'_>) {
    let scheme = url.split_once("://").map_or("oci", |(scheme, _)| scheme);
    if url.is_empty() || !SCHEMES.contains(&scheme) {
        let message = format!("{url:?} is not a place of modules");
        sink.error(&at.field("url"), message, "an http, https, file or oci URL");
    }
    let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if !sha256.is_empty() && (sha256.len() != 64 || !sha256.bytes().all(hex)) {
        sink.error(&at.field("sha256"), "is not a SHA-256", "64 hexadecimal digits");
    }
}

fn virtual_machine(value: Option<&VmConfig>, at: &Path<'_>, sink: &mut Sink<'_>) {
    let at = at.field("env");
    for (index, one) in value.into_iter().flat_map(|vm| &vm.env).enumerate() {
        let at = at.index(index);
        if one.name.is_empty() {
            sink.error(&at.field("name"), "is missing", "the name of a variable");
        }
        if one.value_from == EnvValueSource::Host && !one.value.is_empty() {
            sink.error(&at.field("value"), "comes from the host", "nothing, with valueFrom HOST");
        }
    }
}

fn traffic(matches: &[TrafficSelector], at: &Path<'_>, sink: &mut Sink<'_>) {
    for (index, one) in matches.iter().enumerate() {
        let at = at.index(index);
        let ports = at.field("ports");
        for (index, port) in one.ports.iter().enumerate() {
            checks::port(sink, &ports.index(index).field("number"), port.number);
        }
    }
}

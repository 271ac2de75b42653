//! The definitions of `manifests/crds` on a real API server: it takes them, takes every field of
//! every kind in every version, and refuses what could never work with words that help.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fairlead_tests::cluster::{Cluster, ClusterOptions};
use fairlead_tests::eventually;
use serde_json::{Value, json};

const NAMESPACE: &str = "resources";
const SOON: Duration = Duration::from_secs(30);

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// An API server with the definitions.
fn server() -> Result<Cluster> {
    let cluster = Cluster::up(&ClusterOptions::default().nodes(1).without_dns())?;
    cluster.apply_kustomization(&root().join("manifests/crds"))?;
    eventually("definitions are served", SOON, || {
        for crd in definitions(&cluster)? {
            let conditions = crd["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let is =
                |kind: &str| conditions.iter().any(|c| c["type"] == kind && c["status"] == "True");
            ensure!(
                is("Established") && is("NamesAccepted"),
                "{}: {conditions:?}",
                crd["metadata"]["name"]
            );
            ensure!(!is("NonStructuralSchema"), "{}: {conditions:?}", crd["metadata"]["name"]);
        }
        Ok(Some(()))
    })?;
    cluster.kubectl(&["create", "namespace", NAMESPACE])?;
    Ok(cluster)
}

fn definitions(cluster: &Cluster) -> Result<Vec<Value>> {
    let label = "app.kubernetes.io/part-of=fairlead";
    let list = cluster.json(&["get", "customresourcedefinitions", "-l", label])?;
    Ok(list["items"].as_array().cloned().unwrap_or_default())
}

/// Served versions by group and kind.
fn versions(cluster: &Cluster) -> Result<BTreeMap<(String, String), Vec<String>>> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let all = definitions(cluster)?.into_iter().map(|crd| {
        let spec = &crd["spec"];
        let versions = spec["versions"].as_array().cloned().unwrap_or_default();
        let key = (text(&spec["group"]), text(&spec["names"]["kind"]));
        (key, versions.iter().map(|version| text(&version["name"])).collect())
    });
    Ok(all.collect())
}

#[test]
fn the_api_server_takes_what_is_good_and_refuses_what_is_not() -> Result<()> {
    let cluster = server()?;
    every_field_is_taken(&cluster)?;
    people_find_their_way(&cluster)?;
    status_has_conditions(&cluster)?;
    large_objects_are_taken(&cluster)?;
    mistakes_are_refused(&cluster)
}

/// Every example in every version that is served.
fn every_field_is_taken(cluster: &Cluster) -> Result<()> {
    let versions = versions(cluster)?;
    ensure!(versions.len() == 15, "kinds: {:?}", versions.keys());

    // `--validate=strict` makes an error of each field that the definition does not have, and would
    // drop.
    let mut shown = 0;
    for entry in fs::read_dir(root().join("tests/resources"))? {
        let path = entry?.path();
        if path.extension().is_none_or(|e| e != "yaml") {
            continue;
        }
        let text = fs::read_to_string(&path)?;
        let first = |key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key));
            line.map(str::to_owned).with_context(|| format!("{}: no {key}", path.display()))
        };
        let (written, kind) = (first("apiVersion: ")?, first("kind: ")?);
        let group = written.split('/').next().unwrap_or_default().to_owned();
        let of_kind = versions.get(&(group.clone(), kind.clone()));
        for version in of_kind.with_context(|| format!("{kind} is not served"))? {
            let text = text.replace(&written, &format!("{group}/{version}"));
            let args = ["apply", "--server-side", "--validate=strict", "-f", "-"];
            let (taken, told) = cluster.try_kubectl(&args, &text)?;
            ensure!(taken, "{kind} {version}: {told}");
            shown += 1;
        }
    }
    let served: usize = versions.values().map(Vec::len).sum();
    ensure!(shown == served, "{shown} of {served} versions were tried");

    Ok(())
}

/// Short names, categories and columns are those that people know.
fn people_find_their_way(cluster: &Cluster) -> Result<()> {
    for (name, columns) in [
        ("vs", &["GATEWAYS", "HOSTS", "AGE"][..]),
        ("dr", &["HOST", "AGE"]),
        ("se", &["HOSTS", "LOCATION", "RESOLUTION", "AGE"]),
        ("we", &["AGE", "ADDRESS"]),
        ("ap", &["ACTION", "AGE"]),
        ("pa", &["MODE", "AGE"]),
        ("telemetry", &["AGE"]),
    ] {
        let table = cluster.kubectl(&["get", name, "-n", NAMESPACE])?;
        let head: Vec<&str> = table.lines().next().unwrap_or_default().split_whitespace().collect();
        ensure!(head.get(1..) == Some(columns), "{name}: {table}");
    }
    let all = cluster.kubectl(&["get", "istio-io", "-n", NAMESPACE, "-o", "name"])?;
    for (group, kind) in versions(cluster)?.keys() {
        let beginning = format!("{}.{group}/", kind.to_lowercase());
        ensure!(all.contains(&beginning), "{beginning} is not in the category: {all}");
    }
    let explained = cluster.kubectl(&["explain", "virtualservice.spec.http.timeout"])?;
    ensure!(explained.contains("Limit of the whole request"), "{explained}");
    Ok(())
}

/// Status has conditions, and is apart from the spec.
fn status_has_conditions(cluster: &Cluster) -> Result<()> {
    let status = json!({"status": {
        "observedGeneration": 1,
        "conditions": [{
            "type": "Programmed", "status": "True", "reason": "AllNodes", "message": "2 of 2 nodes",
            "observedGeneration": 1, "lastTransitionTime": "2026-01-01T00:00:00Z",
        }],
        "validationMessages": [{
            "type": {"name": "NotEnforced", "code": "FL0001"}, "level": "WARNING",
            "documentationUrl": "https://example.org",
        }],
    }});
    let object = ["peerauthentication", "strict", "-n", NAMESPACE];
    let patch = status.to_string();
    cluster.kubectl(
        &[&["patch"], &object[..], &["--subresource=status", "--type=merge", "-p", &patch]]
            .concat(),
    )?;
    // The spec cannot be reached that way, nor the status by the other.
    let other = json!({"spec": {"mtls": {"mode": "DISABLE"}}, "status": {"note": "by others"}});
    let patch = other.to_string();
    cluster.kubectl(
        &[&["patch"], &object[..], &["--subresource=status", "--type=merge", "-p", &patch]]
            .concat(),
    )?;
    let found = cluster.json(&[&["get"], &object[..]].concat())?;
    ensure!(found["spec"]["mtls"]["mode"] == "STRICT", "{found}");
    ensure!(found["metadata"]["generation"] == 1, "{found}");
    ensure!(found["status"]["conditions"] == status["status"]["conditions"], "{found}");
    ensure!(found["status"]["validationMessages"] == status["status"]["validationMessages"]);
    // What other controllers write is kept.
    ensure!(found["status"]["note"] == "by others", "{found}");
    Ok(())
}

/// The bounds that CEL rules need leave room for objects of a megabyte, and their cost stays within
/// what the server spends on one object.
fn large_objects_are_taken(cluster: &Cluster) -> Result<()> {
    let route = |number: usize| {
        json!({
            "match": [{"uri": {"prefix": format!("/{number}")}}, {"method": {"exact": "GET"}}],
            "route": [
                {"destination": {"host": "a"}, "weight": 50},
                {"destination": {"host": "b"}, "weight": 50},
            ],
            "timeout": "3s",
            "retries": {"attempts": 3, "perTryTimeout": "1s"},
        })
    };
    let endpoint = |n: usize| json!({"address": format!("10.0.{}.{}", n / 256, n % 256)});
    let port = |n: usize| json!({"number": n, "name": format!("p{n}")});
    for (kind, spec) in [
        (
            "VirtualService",
            json!({"hosts": ["a"], "http": (0..3000).map(route).collect::<Vec<_>>()}),
        ),
        (
            "ServiceEntry",
            json!({
                "hosts": ["a.example.org"],
                "resolution": "STATIC",
                "ports": (1..=256).map(port).collect::<Vec<_>>(),
                "endpoints": (0..4096).map(endpoint).collect::<Vec<_>>(),
            }),
        ),
    ] {
        let object = json!({
            "apiVersion": "networking.istio.io/v1", "kind": kind,
            "metadata": {"name": "large", "namespace": NAMESPACE}, "spec": spec,
        });
        let args = ["create", "--validate=strict", "-f", "-"];
        let (taken, told) = cluster.try_kubectl(&args, &object.to_string())?;
        ensure!(taken, "{kind}: {told}");
    }
    Ok(())
}

/// Objects that no server may take, each with words of the refusal. `fairlead-config` has a test of
/// its own that `fairlead validate` refuses the same.
const REFUSED: &str = include_str!("../resources/refused.json");

fn mistakes_are_refused(cluster: &Cluster) -> Result<()> {
    let mut wrong = Vec::new();
    let all: Vec<Value> = serde_json::from_str(REFUSED)?;
    for mut object in all {
        let words = object["words"].take();
        let words = words.as_str().context("no words")?;
        object["metadata"] = json!({"name": "x", "namespace": NAMESPACE});
        if let Some(fields) = object.as_object_mut() {
            fields.remove("words");
        }
        let text = object.to_string();
        let args = ["create", "--dry-run=server", "--validate=strict", "-f", "-"];
        let (taken, told) = cluster.try_kubectl(&args, &text)?;
        if taken || !told.contains(words) {
            wrong.push(format!("{text}\n{told}"));
        }
    }
    ensure!(
        wrong.is_empty(),
        "{} were taken, or refused otherwise:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    Ok(())
}

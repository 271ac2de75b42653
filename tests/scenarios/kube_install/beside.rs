//! Where Istio's definitions are already, the mesh works with them, changes none, and leaves them
//! with all that is in them.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use fairlead_cluster::system::output_with;
use fairlead_tests::eventually;
use fairlead_tests::kube::{KubeMesh, READY, manifests};
use serde_json::{Value, json};

use super::fairlead;

const POLICY: &str = "apiVersion: security.istio.io/v1\n\
                      kind: AuthorizationPolicy\n\
                      metadata: {name: guard, namespace: shop}\n\
                      spec:\n\
                      \x20 action: DENY\n\
                      \x20 rules: [{to: [{operation: {paths: [\"/secret*\"]}}]}]\n";

/// Takes out what Istio's definitions do not have: our rules and words.
fn strip(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|name, is| {
                name != "x-kubernetes-validations" && !(name == "description" && is.is_string())
            });
            fields.values_mut().for_each(strip);
        }
        Value::Array(all) => all.iter_mut().for_each(strip),
        _ => {}
    }
}

/// Definitions of the same kinds as an installation of Istio by Helm leaves them.
fn put_theirs(mesh: &KubeMesh) -> Result<()> {
    let dir = manifests().join("crds");
    let dir = dir.to_str().context("not UTF-8")?;
    let told = mesh.kubectl(&["create", "--dry-run=client", "-o", "json", "-k", dir])?;
    let ours = serde_json::Deserializer::from_str(&told).into_iter::<Value>();
    let mut ours = ours.collect::<Result<Vec<_>, _>>()?;
    for item in &mut ours {
        item["metadata"] = json!({
            "name": item["metadata"]["name"],
            "labels": {"app": "istio-pilot", "release": "istio"},
            "annotations": {"helm.sh/resource-policy": "keep"},
        });
        strip(&mut item["spec"]);
    }
    let kubectl = fairlead_cluster::Cluster::kubectl(mesh);
    let mut command = kubectl.command(&["create", "--field-manager=helm", "-f", "-"]);
    let list = json!({"apiVersion": "v1", "kind": "List", "items": ours});
    output_with(&mut command, list.to_string().as_bytes())?;
    mesh.kubectl(&["wait", "crd", "-l", "app=istio-pilot", "--for=condition=Established"]).map(drop)
}

/// What is theirs of the definitions, by name.
fn theirs(mesh: &KubeMesh) -> Result<BTreeMap<String, Value>> {
    let list = mesh.json(&["get", "crds", "-l", "app=istio-pilot", "--show-managed-fields"])?;
    let items = list["items"].as_array().context("no items")?;
    let told = items.iter().map(|item| {
        let meta = &item["metadata"];
        let managers = meta["managedFields"].as_array().into_iter().flatten();
        let managers: Vec<&Value> = managers.map(|entry| &entry["manager"]).collect();
        let name = meta["name"].as_str().unwrap_or_default().to_owned();
        let rest = json!([
            meta["uid"],
            meta["generation"],
            meta["labels"],
            meta["annotations"],
            managers,
            item["spec"]
        ]);
        (name, rest)
    });
    Ok(told.collect())
}

/// On a cluster without a mesh, whose namespace `shop` has a client and a server at `url`.
pub(super) fn istio(mesh: &KubeMesh, url: &str) -> Result<()> {
    put_theirs(mesh)?;
    let before = theirs(mesh)?;
    ensure!(before.len() > 10, "{:?}", before.keys());
    let (done, said) = fairlead(mesh, &["install", "--overlay", "beside-istio"])?;
    ensure!(done && said.contains("The mesh is ready"), "{said}");
    mesh.kubectl(&["label", "namespace", "shop", "istio.io/dataplane-mode=ambient"])?;
    mesh.until_meshed("shop", "client", url, true)?;
    eventually("the policy is taken", READY, || mesh.apply(POLICY).map(Some))?;
    eventually("the policy is in force", READY, || {
        let status = mesh.get("shop", "client", &format!("{url}secret"), &[])?.status();
        ensure!(status == 403, "{status}");
        Ok(Some(()))
    })?;
    eventually("the policy's status", READY, || {
        let condition =
            mesh.condition("shop", "authorizationpolicies.security.istio.io/guard", "Reconciled")?;
        ensure!(condition["status"] == "True", "{condition}");
        Ok(Some(()))
    })?;
    let (done, said) = fairlead(mesh, &["uninstall", "--unlabel"])?;
    ensure!(done && said.contains("gone from the cluster and from its nodes"), "{said}");
    let after = theirs(mesh)?;
    for (name, before) in &before {
        ensure!(after.get(name) == Some(before), "{name}: {before} became {:?}", after.get(name));
    }
    let left = mesh.kubectl(&["get", "authorizationpolicies", "-n", "shop", "-o", "name"])?;
    ensure!(left.contains("guard"), "the policy went: {left}");
    Ok(())
}

//! Who may depend on whom (docs/architecture.md).

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::workspace::cargo;

/// What a package may use of the workspace (`None`: everything but binaries), and what it must
/// not reach from outside, directly or through others.
struct Rule {
    package: &'static str,
    may_use: Option<&'static [&'static str]>,
    never: &'static [&'static str],
}

const RULES: &[Rule] = &[
    Rule { package: "fairlead-abi", may_use: Some(&[]), never: &["tokio"] },
    Rule {
        package: "fairlead-types",
        may_use: Some(&[]),
        never: &["tokio", "aya", "kube", "hyper"],
    },
    Rule {
        package: "fairlead-api",
        may_use: Some(&["fairlead-types"]),
        never: &["tokio", "aya", "kube"],
    },
    Rule {
        package: "fairlead-policy",
        may_use: Some(&["fairlead-types"]),
        never: &["tokio", "mio", "hyper", "aya", "kube", "socket2"],
    },
    Rule {
        package: "fairlead-config",
        may_use: Some(&["fairlead-api", "fairlead-policy", "fairlead-types"]),
        never: &["tokio", "aya", "kube", "hyper"],
    },
    Rule {
        package: "fairlead-identity",
        may_use: Some(&["fairlead-types"]),
        never: &["aya", "kube", "hyper"],
    },
    Rule {
        package: "fairlead-telemetry",
        may_use: Some(&["fairlead-types"]),
        never: &["aya", "kube"],
    },
    Rule {
        package: "fairlead-capture",
        may_use: Some(&["fairlead-abi", "fairlead-types"]),
        never: &["kube", "hyper", "rustls"],
    },
    Rule {
        package: "fairlead-proxy",
        may_use: Some(&[
            "fairlead-policy",
            "fairlead-config",
            "fairlead-identity",
            "fairlead-telemetry",
            "fairlead-types",
        ]),
        never: &["aya", "kube"],
    },
    Rule { package: "fairlead-cli", may_use: None, never: &["aya"] },
];

/// Packages that are programs: nothing depends on them.
const BINARIES: &[&str] =
    &["fairlead-node", "fairlead-cli", "fairlead-apps", "fairlead-bench", "fairlead-xtask"];

/// Packages that test others from outside and may reach whatever they test.
const TESTERS: &[&str] = &["fairlead-fuzz"];

/// What is broken, in words.
pub(super) fn check() -> Result<Vec<String>> {
    let output = cargo(&["metadata", "--format-version", "1", "--locked"]).output()?;
    anyhow::ensure!(
        output.status.success(),
        "cargo metadata: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    judge(&serde_json::from_slice(&output.stdout)?)
}

fn judge(metadata: &Value) -> Result<Vec<String>> {
    let packages = metadata["packages"].as_array().context("no packages")?;
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let name_of: BTreeMap<String, String> =
        packages.iter().map(|p| (text(&p["id"]), text(&p["name"]))).collect();
    let nodes = metadata["resolve"]["nodes"].as_array().context("no resolved dependencies")?;
    // Normal dependencies only: what tests and build scripts use does not ship.
    let mut edges: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for node in nodes {
        let normal = node["deps"].as_array().into_iter().flatten().filter(|dep| {
            dep["dep_kinds"].as_array().into_iter().flatten().any(|kind| kind["kind"].is_null())
        });
        let names = normal.filter_map(|dep| name_of.get(&text(&dep["pkg"]))).cloned();
        edges.entry(name_of[&text(&node["id"])].clone()).or_default().extend(names);
    }
    let mut broken = Vec::new();
    let ours = edges
        .iter()
        .filter(|(name, _)| name.starts_with("fairlead-") && !TESTERS.contains(&name.as_str()));
    for (package, uses) in ours {
        for binary in uses.iter().filter(|u| BINARIES.contains(&u.as_str())) {
            broken.push(format!("{package} depends on the program {binary}"));
        }
    }
    for rule in RULES {
        let Some(uses) = edges.get(rule.package) else {
            broken.push(format!("{} is gone: take its rule away too", rule.package));
            continue;
        };
        if let Some(may_use) = rule.may_use {
            let ours = uses.iter().filter(|u| u.starts_with("fairlead-"));
            for extra in ours.filter(|u| !may_use.contains(&u.as_str())) {
                broken.push(format!("{} depends on {extra}", rule.package));
            }
        }
        for never in rule.never {
            if let Some(path) = path_to(&edges, rule.package, never) {
                broken.push(format!("{} reaches {never}: {}", rule.package, path.join(" → ")));
            }
        }
    }
    Ok(broken)
}

/// The shortest way from a package to another one.
fn path_to(
    edges: &BTreeMap<String, BTreeSet<String>>,
    from: &str,
    to: &str,
) -> Option<Vec<String>> {
    let mut ways = std::collections::VecDeque::from([vec![from.to_owned()]]);
    let mut seen = BTreeSet::new();
    while let Some(way) = ways.pop_front() {
        let last = way.last()?;
        if last == to {
            return Some(way);
        }
        for next in edges.get(last).into_iter().flatten() {
            if seen.insert(next.clone()) {
                ways.push_back([&way[..], std::slice::from_ref(next)].concat());
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_are_found() {
        let edges: BTreeMap<_, BTreeSet<_>> = [("a", &["b"][..]), ("b", &["c"]), ("c", &[])]
            .map(|(k, v)| (k.to_owned(), v.iter().map(|s| (*s).to_owned()).collect()))
            .into();
        assert_eq!(path_to(&edges, "a", "c").unwrap(), ["a", "b", "c"]);
        assert_eq!(path_to(&edges, "c", "a"), None);
    }
}

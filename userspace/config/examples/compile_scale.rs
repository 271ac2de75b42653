//! How long a large configuration takes from text to snapshot, and a change of one object in it.
//!
//! ```text
//! cargo run --release -p fairlead-config --example compile_scale [services] [endpoints per service]
//! ```
//!
//! Two meshes are measured: one whose endpoints come from EndpointSlices alone, and one with a
//! Pod for each endpoint, selected by labels. Every tenth service has a VirtualService and a
//! DestinationRule with two subsets.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fairlead_api::{ObjectKey, Resource};
use fairlead_config::compile::{Compiler, CompilerSettings, Update};
use fairlead_config::source::{Format, parse};

/// Changes of each kind; the median is told.
const CHANGES: usize = 200;

fn main() {
    let mut args = std::env::args().skip(1).map(|arg| arg.parse::<usize>().ok());
    let services = args.next().flatten().unwrap_or(5_000);
    let each = args.next().flatten().unwrap_or(4);
    println!("{services} services, {} endpoints", services * each);
    for pods in [false, true] {
        measure(services, each, pods);
    }
}

fn measure(services: usize, each: usize, pods: bool) {
    let mut yaml = String::from(NAMESPACE);
    for i in 0..services {
        yaml += &service(i);
        if i % 10 == 0 {
            yaml += &routing(i);
        }
        if pods {
            for k in 0..each {
                yaml += &pod(i, k, "a");
            }
        } else {
            yaml += &slice(i, each);
        }
    }
    let began = Instant::now();
    let objects = read(&yaml);
    let parsed = began.elapsed();
    let mut compiler = Compiler::new(CompilerSettings::new("node-1"));
    let (snapshot, problems, stats) =
        compiler.apply(&Update { objects: &objects, fail_closed: None });
    let total = parsed + stats.elapsed;
    println!(
        "\n{}: {} objects, {:.1} MB of YAML, {} clusters, {} workloads, {} problems",
        if pods { "pods and selectors" } else { "EndpointSlices" },
        objects.len(),
        yaml.len() as f64 / 1e6,
        snapshot.clusters.len(),
        snapshot.workloads.len(),
        problems.len()
    );
    println!("  read and validated   {}", show(parsed));
    println!("  compiled             {}", show(stats.elapsed));
    println!("  together             {}", show(total));
    let mut change = |name: &str, text: &dyn Fn(usize) -> String| {
        let (mut reading, mut compiling) = (Vec::new(), Vec::new());
        for n in 0..CHANGES {
            let text = text(n);
            let began = Instant::now();
            let objects = read(&text);
            reading.push(began.elapsed());
            let (_, _, stats) = compiler.apply(&Update { objects: &objects, fail_closed: None });
            compiling.push(stats.elapsed);
        }
        let compiled = median(&mut compiling);
        println!(
            "  one changed {name:<16} {} to compile, {} to read: together 1/{:.0} of the whole",
            show(compiled),
            show(median(&mut reading)),
            total.as_secs_f64() / (compiled + median(&mut reading)).as_secs_f64()
        );
    };
    if pods {
        change("Pod", &|n| pod(n * 7 % services, 0, ["b", "a"][n / services % 2]));
        change("Pod, readiness", &|n| {
            let status = ["False", "True"][n % 2];
            pod(11, 0, "a") + &format!("  conditions: [{{type: Ready, status: '{status}'}}]\n")
        });
    } else {
        change("EndpointSlice", &|n| slice(n * 7 % services, each + 1));
    }
    change("Service", &|n| service(n * 7 % services).replace("port: 80,", "port: 81,"));
    change("VirtualService", &|n| {
        routing(n * 10 % services)
            .replace("weight: 80", "weight: 60")
            .replace("weight: 20", "weight: 40")
    });
}

fn read(yaml: &str) -> Vec<(ObjectKey, Option<Resource>)> {
    let parsed = parse(&Arc::new(PathBuf::from("mesh.yaml")), yaml, Format::Yaml);
    if let Some(problem) = parsed.problems.iter().find(|problem| problem.is_error()) {
        println!("{problem}");
    }
    parsed.objects.into_iter().map(|object| (object.key(), Some(object))).collect()
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn show(time: Duration) -> String {
    let micros = time.as_secs_f64() * 1e6;
    if micros < 10_000.0 { format!("{micros:7.1} us") } else { format!("{:7.1} ms", micros / 1e3) }
}

const NAMESPACE: &str = "---
apiVersion: v1
kind: Namespace
metadata:
  name: shop
  labels: {istio.io/dataplane-mode: ambient}
";

fn address(i: usize, k: usize) -> String {
    let n = i * 8 + k;
    format!("10.{}.{}.{}", n >> 16, (n >> 8) & 255, n & 255)
}

fn service(i: usize) -> String {
    format!(
        "---
apiVersion: v1
kind: Service
metadata:
  name: svc-{i}
  namespace: shop
spec:
  clusterIP: 172.{}.{}.{}
  selector:
    app: svc-{i}
  ports:
  - {{name: http, port: 80, targetPort: 8080, protocol: TCP}}
",
        16 + (i >> 16),
        (i >> 8) & 255,
        i & 255
    )
}

fn routing(i: usize) -> String {
    format!(
        "---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: svc-{i}, namespace: shop}}
spec:
  host: svc-{i}
  subsets:
  - {{name: a, labels: {{version: a}}}}
  - {{name: b, labels: {{version: b}}}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: svc-{i}, namespace: shop}}
spec:
  hosts: [svc-{i}]
  http:
  - match: [{{headers: {{end-user: {{exact: jason}}}}}}]
    route: [{{destination: {{host: svc-{i}, subset: b}}}}]
  - route:
    - {{destination: {{host: svc-{i}, subset: a}}, weight: 80}}
    - {{destination: {{host: svc-{i}, subset: b}}, weight: 20}}
"
    )
}

fn pod(i: usize, k: usize, version: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: Pod
metadata:
  name: svc-{i}-{k}
  namespace: shop
  labels:
    app: svc-{i}
    version: {version}
spec:
  nodeName: node-{}
  serviceAccountName: svc
  containers:
  - name: main
    ports: [{{containerPort: 8080}}]
status:
  phase: Running
  podIP: {}
",
        (i + k) % 100,
        address(i, k)
    )
}

fn slice(i: usize, each: usize) -> String {
    let mut text = format!(
        "---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: svc-{i}-abc
  namespace: shop
  labels: {{kubernetes.io/service-name: svc-{i}}}
addressType: IPv4
ports:
- {{name: http, port: 8080, protocol: TCP}}
endpoints:
"
    );
    for k in 0..each {
        let _ = writeln!(text, "- {{addresses: [{}], conditions: {{ready: true}}}}", address(i, k));
    }
    text
}

//! What memory the objects of a controller take in a daemon, without a cluster: the objects of
//! `bench/control` go through the daemon's own code as Updates, are kept on disk, and are taken in
//! again from there as after a restart. Each way runs in a process of its own.
//!
//! ```text
//! cargo run --release -p fairlead-node --example controller_memory [services] [endpoints per service]
//! ```

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use fairlead_node::configuration::controller::bench::Node;
use fairlead_wire::config::{Key, Resource, Update};

/// Bytes of one Update, about as many as the controller makes it.
const UPDATE: usize = 2 << 20;
/// Nodes and namespaces of the cluster.
const NODES: usize = 1_000;
const NAMESPACES: usize = 100;
/// Changes of one endpoint.
const CHANGES: usize = 2_000;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, or: usize| args.get(at).map_or(Ok(or), |text| text.parse());
    let (services, each) = (number(0, 5_000)?, number(1, 20)?);
    let directory = args.get(2).map_or_else(scratch, PathBuf::from);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match args.get(3).map(String::as_str) {
        Some("stream") => runtime.block_on(stream(&directory, services, each, false)),
        Some("pod") => runtime.block_on(stream(&directory, services, each, true)),
        Some("disk") => runtime.block_on(disk(&directory, services * each)),
        Some(other) => bail!("{other}: stream, disk or pod"),
        None => {
            println!("{services} services, {} endpoints", services * each);
            let done = ["stream", "disk", "pod"].into_iter().try_for_each(|way| {
                let mut child = Command::new(std::env::current_exe()?);
                child.args([services.to_string(), each.to_string()]).arg(&directory).arg(way);
                let status = child.status()?;
                if status.success() { Ok(()) } else { Err(io::Error::other(status.to_string())) }
            });
            std::fs::remove_dir_all(&directory).context("removing the state")?;
            Ok(done?)
        }
    }
}

fn scratch() -> PathBuf {
    std::env::temp_dir().join(format!("fairlead-memory-{}", std::process::id()))
}

/// Everything as it comes when the stream opens, or (`later`) when a pod comes that reaches it all;
/// then changes of one endpoint.
async fn stream(directory: &Path, services: usize, each: usize, later: bool) -> Result<()> {
    let directory = if later { &directory.join("later") } else { directory };
    let mut node = Node::open(directory, "node-0001")?;
    let before = Memory::now()?;
    let began = Instant::now();
    let (mut upserts, mut bytes, mut objects) = (Vec::new(), 0, 0);
    for resource in all(services, each) {
        bytes += resource.json.len();
        objects += 1;
        upserts.push(resource);
        if bytes > UPDATE {
            bytes = 0;
            let upserts = std::mem::take(&mut upserts);
            take(&mut node, Update { upserts, complete: later, ..Update::default() }).await?;
        }
    }
    take(&mut node, Update { upserts, complete: true, ..Update::default() }).await?;
    let when = if later { "because of a pod" } else { "when it opens" };
    println!("\nfrom a stream, {when}: {objects} objects in {:?}", began.elapsed());
    before.tell("everything has come", services * each)?;
    // The disk's thread gives back what it wrote.
    tokio::time::sleep(Duration::from_secs(1)).await;
    node.rest();
    before.tell("and is on disk", services * each)?;
    let began = Instant::now();
    for n in 0..CHANGES {
        let upserts = vec![slice(n * 7 % services.max(1), each, Some(n))];
        take(&mut node, Update { upserts, complete: true, ..Update::default() }).await?;
    }
    println!("{:?} a change of one endpoint", began.elapsed() / u32::try_from(CHANGES)?);
    before.tell(&format!("after {CHANGES} changes"), services * each)?;
    println!("{} clusters", node.snapshot().clusters.len());
    Ok(())
}

/// Everything as it is taken in at a start.
async fn disk(directory: &Path, endpoints: usize) -> Result<()> {
    let before = Memory::now()?;
    let began = Instant::now();
    let node = Node::open(directory, "node-0001")?;
    println!("\nfrom disk: in {:?}", began.elapsed());
    before.tell("everything is there", endpoints)?;
    println!("{} clusters", node.snapshot().clusters.len());
    Ok(())
}

async fn take(node: &mut Node, mut update: Update) -> Result<()> {
    static NONCE: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
    update.nonce = NONCE.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    match node.take(update).await {
        Ok(0) => Ok(()),
        Ok(refused) => bail!("{refused} objects were refused"),
        Err(reason) => bail!(reason),
    }
}

/// Resident bytes that are no pages of files, now and at most.
struct Memory {
    anonymous: u64,
    peak: u64,
}

impl Memory {
    fn now() -> Result<Self> {
        let status = std::fs::read_to_string("/proc/self/status")?;
        let bytes = |name: &str| -> Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).context("a line")?;
            Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
        };
        let anonymous = bytes("RssAnon:")?;
        Ok(Self { anonymous, peak: bytes("VmHWM:")? - (bytes("VmRSS:")? - anonymous) })
    }

    fn tell(&self, what: &str, endpoints: usize) -> Result<()> {
        let now = Self::now()?;
        let more = now.anonymous.saturating_sub(self.anonymous);
        println!(
            "{:6.1} MB more, {} bytes per endpoint, {:.1} MB more at most: {what}",
            more as f64 / 1e6,
            more / endpoints.max(1) as u64,
            now.peak.saturating_sub(self.anonymous) as f64 / 1e6
        );
        Ok(())
    }
}

fn resource(api_version: &str, kind: &str, namespace: &str, name: &str, json: String) -> Resource {
    let key = Key {
        api_version: api_version.to_owned(),
        kind: kind.to_owned(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    };
    // As the controller makes them: the UID, and a hash of the content.
    let hash = json.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let version = format!("1e5c0b9a-{:04x}-4c58-9d5c-{hash:012x}/{hash:016x}", name.len());
    Resource { key: Some(key), version, json: json.into_bytes(), generation: 0 }
}

/// All objects, trimmed as the controller trims them.
fn all(services: usize, each: usize) -> impl Iterator<Item = Resource> {
    let namespaces = (0..NAMESPACES).map(|number| {
        let name = namespace(number);
        let json = format!(
            r#"{{"apiVersion":"v1","kind":"Namespace","metadata":{{"name":"{name}","labels":{{"istio.io/dataplane-mode":"ambient","kubernetes.io/metadata.name":"{name}"}}}}}}"#
        );
        resource("v1", "Namespace", "", &name, json)
    });
    let nodes = (0..NODES).map(|number| {
        let name = format!("node-{number:04}");
        let json = format!(
            r#"{{"apiVersion":"v1","kind":"Node","metadata":{{"name":"{name}","labels":{{"topology.kubernetes.io/zone":"zone-{}"}}}}}}"#,
            number % 3
        );
        resource("v1", "Node", "", &name, json)
    });
    let services =
        (0..services).flat_map(move |number| [service(number), slice(number, each, None)]);
    namespaces.chain(nodes).chain(services)
}

fn namespace(number: usize) -> String {
    format!("app-{:03}", number % NAMESPACES)
}

fn address(first: u8, number: usize) -> String {
    format!("{first}.{}.{}.{}", (number >> 16) & 255, (number >> 8) & 255, number & 255)
}

fn service(number: usize) -> Resource {
    let (namespace, name, ip) =
        (namespace(number), format!("svc-{number:05}"), address(10, number));
    let json = format!(
        r#"{{"apiVersion":"v1","kind":"Service","metadata":{{"name":"{name}","namespace":"{namespace}"}},"spec":{{"clusterIP":"{ip}","clusterIPs":["{ip}"],"internalTrafficPolicy":"Cluster","ports":[{{"name":"http","port":80,"protocol":"TCP","targetPort":8080}}],"selector":{{"app":"{name}"}},"sessionAffinity":"None","type":"ClusterIP"}}}}"#
    );
    resource("v1", "Service", &namespace, &name, json)
}

/// The slice of a service; `change` gives its first endpoint another address.
fn slice(number: usize, each: usize, change: Option<usize>) -> Resource {
    let (namespace, name) = (namespace(number), format!("svc-{number:05}"));
    let endpoints: Vec<String> = (0..each)
        .map(|endpoint| {
            let own = address(11, number * each + endpoint);
            let ip = change.filter(|_| endpoint == 0).map_or(own, |n| address(12, n));
            format!(
                r#"{{"addresses":["{ip}"],"conditions":{{"ready":true,"serving":true,"terminating":false}},"nodeName":"node-{:04}","zone":"zone-{}"}}"#,
                (number + endpoint * 7) % NODES,
                endpoint % 3
            )
        })
        .collect();
    let json = format!(
        r#"{{"addressType":"IPv4","apiVersion":"discovery.k8s.io/v1","endpoints":[{}],"kind":"EndpointSlice","metadata":{{"labels":{{"kubernetes.io/service-name":"{name}"}},"name":"{name}-1","namespace":"{namespace}"}},"ports":[{{"name":"http","port":8080,"protocol":"TCP"}}]}}"#,
        endpoints.join(",")
    );
    resource("discovery.k8s.io/v1", "EndpointSlice", &namespace, &format!("{name}-1"), json)
}

//! The harness without a daemon: nodes, pods, names, the observer on the wire, and what is left
//! afterwards (nothing).

use std::time::Instant;

use anyhow::Result;
use fairlead_tests::{Mesh, PodSpec, ServiceSpec};

#[test]
fn pods_reach_each_other_and_the_observer_sees_it() -> Result<()> {
    let start = Instant::now();
    let mesh = Mesh::new(2)?;
    let client = mesh.pod(PodSpec::new("client"))?;
    let near = mesh.pod(PodSpec::new("near"))?;
    let far = mesh.pod(PodSpec::new("far").on(1))?;
    let vips = mesh.service(ServiceSpec::new("far").port("http", 8080, 8080));
    mesh.route_without_mesh(vips[0], &[&near, &far])?;
    mesh.sync()?;
    eprintln!("topology: {:?}", start.elapsed());
    let _near = near.serve(&["echo", "--name", "near", "--http", "8080", "--tcp", "9000"])?;
    let _far = far.serve(&["echo", "--name", "far", "--http", "8080", "--tcp", "9000"])?;
    let capture = mesh.capture()?;
    for ip in &far.ips {
        let host = if ip.is_ipv4() { format!("{ip}") } else { format!("[{ip}]") };
        let reply = client.get(&format!("http://{host}:8080/MARKER-far"), &[])?;
        assert_eq!(reply.status(), 200, "{}", reply.0);
        let own = client.ip_of(ip.is_ipv4()).to_string();
        assert!(reply.echo("peer").contains(&own), "{}", reply.0);
    }
    let reply = client.get(&format!("http://{}:8080/MARKER-near", near.ip()), &[])?;
    assert_eq!((reply.status(), reply.echo("name").as_str()), (200, "near"));
    let load = client.load("http://far:8080/", &["-n", "60", "--fresh"])?;
    assert_eq!(load.count("ok"), 60, "{}", load.0);
    assert!(load.pod("near") > 5 && load.pod("far") > 5, "{}", load.0);
    let wire = capture.stop()?;
    assert!(wire.saw_plaintext("MARKER-far"));
    assert!(!wire.saw_plaintext("MARKER-near"), "same-node traffic crossed the wire");
    eprintln!("all: {:?}", start.elapsed());
    let (id, dir) = (mesh.id().to_owned(), mesh.dir());
    drop((mesh, client, near, far));
    assert!(!dir.exists());
    let left = std::fs::read_dir("/run/netns")?
        .flatten()
        .filter(|e| e.file_name().to_string_lossy().starts_with(&format!("{id}-")))
        .count();
    assert_eq!(left, 0, "namespaces were left behind");
    Ok(())
}

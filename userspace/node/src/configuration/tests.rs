use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::*;

/// How long a change may take from save to snapshot (issue 3, section 3).
const PROMISE: Duration = Duration::from_millis(100);

struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("fairlead-conf-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, text: &str) {
        // As editors and kubectl do it: whole or not at all.
        let temporary = self.0.join(".new");
        fs::write(&temporary, text).unwrap();
        fs::rename(&temporary, self.0.join(name)).unwrap();
    }

    fn start(&self) -> Configuration {
        Configuration::start(&self.0, "a", &Supervisor::new().0).unwrap()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn pod(name: &str, ip: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: default\n  labels: \
         {{fairlead.io/mesh: enabled}}\n  annotations: {{fairlead.io/netns: /run/netns/{name}}}\n\
         spec:\n  nodeName: a\n  serviceAccountName: {name}\n  containers: []\nstatus:\n  phase: \
         Running\n  podIP: {ip}\n  podIPs: [{{ip: {ip}}}]\n---\n"
    )
}

fn within(limit: Duration, what: &str, mut done: impl FnMut() -> bool) -> Duration {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < limit, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
    begin.elapsed()
}

#[test]
fn saves_become_snapshots_and_broken_files_disturb_nothing() {
    let dir = Dir::new("saves");
    dir.write("pods.yaml", &pod("one", "10.0.0.1"));
    let configuration = dir.start();
    let snapshots = configuration.snapshots().clone();
    assert_eq!(snapshots.load().local.len(), 1);
    assert!(configuration.report().lock().complete);

    // Medians would hide what the first save after a quiet time costs; the best of three shows
    // that the promise can be kept on a machine that does other things, too.
    let best = (2..5)
        .map(|n| {
            let pods: String =
                (0..n).map(|i| pod(&format!("p{i}"), &format!("10.0.0.{i}"))).collect();
            dir.write("pods.yaml", &pods);
            within(Duration::from_secs(10), "a save", || snapshots.load().local.len() == n)
        })
        .min();
    assert!(best.is_some_and(|best| best < PROMISE), "{best:?} from save to snapshot");

    dir.write("pods.yaml", "kind: Pod\nmetadata: [");
    within(Duration::from_secs(10), "the report", || configuration.report().lock().counts[0] > 0);
    let report = configuration.report().lock().clone();
    assert!(!report.complete);
    assert!(report.entries[0].file.as_deref().is_some_and(|f| f.contains("pods.yaml")));
    assert_eq!(snapshots.load().local.len(), 4, "the last good state stays");
}

#[test]
fn what_makes_traffic_fail_is_told_once() {
    let dir = Dir::new("refused");
    dir.write(
        "route.yaml",
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: web}\n\
         spec: {hosts: [web], http: [{redirect: {uri: /x}}]}\n",
    );
    // A warning of the object's own text, and an error of the compiler's at the same place.
    let report = dir.start().report().lock().clone();
    let told: Vec<_> =
        report.entries.iter().map(|e| (e.severity, e.field.as_str(), e.message.as_str())).collect();
    let said = "not supported yet; requests that match are answered 503";
    assert_eq!(told, [("error", "spec.http[0].redirect", said)]);
}

#[test]
fn a_file_that_may_hold_policies_and_was_never_readable_closes_the_mesh() {
    let dir = Dir::new("suspect");
    dir.write("pods.yaml", &pod("one", "10.0.0.1"));
    dir.write("policy.yaml", "kind: AuthorizationPolicy\nmetadata: [");
    let configuration = dir.start();
    let closed = |snapshots: &SnapshotHandle| {
        snapshots.with(|s| s.inbound.values().all(|i| i.authz.policies().count() > 0))
    };
    assert!(!configuration.snapshots().load().inbound.is_empty());
    assert!(closed(configuration.snapshots()), "nobody knows what the policy forbids");
    let report = configuration.report().lock().clone();
    assert!(report.entries.iter().any(|e| e.message.contains("denied")), "{report:?}");
    dir.write("policy.yaml", "# AuthorizationPolicy: none\n");
    let snapshots = configuration.snapshots().clone();
    within(Duration::from_secs(10), "opening again", || !closed(&snapshots));

    // The same while the daemon runs: a new file, and the mesh's own settings.
    dir.write("later.yaml", "kind: AuthorizationPolicy\nmetadata: [");
    within(Duration::from_secs(10), "closing", || closed(&snapshots));
    fs::remove_file(dir.0.join("later.yaml")).unwrap();
    within(Duration::from_secs(10), "opening again", || !closed(&snapshots));
    let settings = |mode: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\n\
             data:\n  mesh: |\n    rootNamespace: root\n    outboundTrafficPolicy: {{mode: {mode}}}\n"
        )
    };
    dir.write("mesh.yaml", &settings("NEVER"));
    within(Duration::from_secs(10), "closing", || closed(&snapshots));
    dir.write("mesh.yaml", &settings("REGISTRY_ONLY"));
    within(Duration::from_secs(10), "opening again", || !closed(&snapshots));
    // And under another name of the root namespace.
    dir.write("later.yaml", "kind: AuthorizationPolicy\nmetadata: [");
    within(Duration::from_secs(10), "closing", || closed(&snapshots));
}

#[test]
fn a_request_authentication_that_cannot_be_enforced_closes_its_scope() {
    let dir = Dir::new("jwt");
    dir.write("pods.yaml", &pod("one", "10.0.0.1"));
    let jwt = |namespace: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{name: jwt, \
             namespace: {namespace}}}\nspec: {{jwtRules: [{{issuer: a, jwksUri: 'https://a/jwks'}}]}}\n"
        )
    };
    dir.write("jwt.yaml", &jwt("default"));
    let configuration = dir.start();
    let closed = || {
        let snapshot = configuration.snapshots().load();
        snapshot.inbound.values().all(|i| i.authz.policies().count() == 1)
    };
    assert!(closed());
    dir.write("jwt.yaml", &jwt("other"));
    within(Duration::from_secs(10), "opening", || !closed());
}

#[test]
fn rereading_finds_what_timestamps_hide() {
    let dir = Dir::new("reread");
    dir.write("pods.yaml", &pod("one", "10.0.0.1"));
    let configuration = dir.start();
    let loads = configuration.report().lock().loads;
    configuration.reread();
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(configuration.report().lock().loads, loads, "nothing has changed");
    // Written in place, while nobody closes the file: inotify tells of no finished save.
    let path = dir.0.join("pods.yaml");
    let text = fs::read_to_string(&path).unwrap().replace("10.0.0.1", "10.0.0.9");
    fs::write(&path, text).unwrap();
    configuration.reread();
    let snapshots = configuration.snapshots().clone();
    within(Duration::from_secs(10), "the new address", || {
        snapshots.load().workloads.contains_key(&"10.0.0.9".parse::<std::net::IpAddr>().unwrap())
    });
}

use std::os::unix::fs::PermissionsExt as _;

use super::*;

struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("fl-assigned-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        Self(dir)
    }

    fn open(&self) -> Assigned {
        Assigned::kept_beside(&self.0.join("cni.sock"))
    }

    fn file(&self) -> PathBuf {
        self.0.join("cni.addresses.json")
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn sandbox(container: &str, name: &str, uid: &str, ips: &[&str]) -> Sandbox {
    Sandbox {
        container_id: container.into(),
        netns: "/n".into(),
        pod_namespace: "shop".into(),
        pod_name: name.into(),
        pod_uid: uid.into(),
        ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
    }
}

fn id(name: &str) -> WorkloadId {
    WorkloadId::new("shop", name)
}

fn of(assigned: &Assigned, name: &str, uid: &str) -> Vec<String> {
    assigned.of(&id(name), uid).iter().map(ToString::to_string).collect()
}

/// What the controller is told: UID and addresses.
fn news(assigned: &Assigned) -> (Vec<(String, Vec<String>)>, bool) {
    let News { pods, all } = assigned.news();
    let mut pods: Vec<_> = pods.into_iter().map(|pod| (pod.uid, pod.addresses)).collect();
    pods.sort();
    (pods, all)
}

fn told(uid: &str, ips: &[&str]) -> (String, Vec<String>) {
    (uid.to_owned(), ips.iter().map(|ip| (*ip).to_owned()).collect())
}

#[test]
fn a_daemon_that_starts_again_has_them() {
    let dir = Dir::new("again");
    let first = dir.open();
    assert!(of(&first, "p", "u").is_empty() && !dir.file().exists());
    first.tell(&sandbox("c1", "p", "u", &["::ffff:10.0.0.7", "fd00::7", "10.0.0.7"]));
    first.tell(&sandbox("c2", "q", "v", &["10.0.0.8"]));
    let mode = fs::metadata(dir.file()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let second = dir.open();
    assert_eq!(of(&second, "p", "u"), ["10.0.0.7", "fd00::7"]);
    assert!(of(&second, "p", "another").is_empty(), "a pod of the same name");
    assert!(of(&second, "r", "u").is_empty());
    // What the one before heard meanwhile.
    first.forget("c2");
    first.tell(&sandbox("c3", "r", "w", &["10.0.0.9"]));
    assert_eq!(of(&second, "q", "v"), ["10.0.0.8"]);
    second.reload();
    assert!(of(&second, "q", "v").is_empty());
    assert_eq!(of(&second, "r", "w"), ["10.0.0.9"]);
}

#[test]
fn a_file_of_others_is_not_used() {
    let dir = Dir::new("others");
    dir.open().tell(&sandbox("c1", "p", "u", &["10.0.0.7"]));
    let good = fs::read(dir.file()).unwrap();
    let set = |bytes: &[u8], mode| {
        fs::write(dir.file(), bytes).unwrap();
        fs::set_permissions(dir.file(), fs::Permissions::from_mode(mode)).unwrap();
        of(&dir.open(), "p", "u").len()
    };
    assert_eq!(set(&good, 0o600), 1);
    assert_eq!(set(&good, 0o660), 0);
    assert_eq!(set(&good[..good.len() - 1], 0o600), 0);
    let wide = vec!["10.0.0.7"; MAX_IPS + 1];
    let wide = serde_json::json!([{"container_id": "c", "uid": "u", "namespace": "shop",
        "name": "p", "addresses": wide}]);
    assert_eq!(set(wide.to_string().as_bytes(), 0o600), 0);
    fs::remove_file(dir.file()).unwrap();
    let elsewhere = dir.0.join("elsewhere");
    fs::write(&elsewhere, &good).unwrap();
    fs::set_permissions(&elsewhere, fs::Permissions::from_mode(0o600)).unwrap();
    std::os::unix::fs::symlink(&elsewhere, dir.file()).unwrap();
    assert!(of(&dir.open(), "p", "u").is_empty());
    // It is written anew all the same.
    dir.open().tell(&sandbox("c1", "p", "u", &["10.0.0.9"]));
    assert_eq!(of(&dir.open(), "p", "u"), ["10.0.0.9"]);
    assert_eq!(fs::read(&elsewhere).unwrap(), good);
}

#[test]
fn sandboxes_come_and_go() {
    let assigned = Assigned::default();
    assigned.tell_all();
    assert_eq!(news(&assigned), (vec![], true));
    assigned.tell(&sandbox("c1", "p", "u", &["10.0.0.7"]));
    assigned.tell(&sandbox("c1", "p", "u", &["10.0.0.7"]));
    assert_eq!(news(&assigned), (vec![told("u", &["10.0.0.7"])], false));
    assigned.tell(&sandbox("c1", "p", "u", &["10.0.0.7"]));
    assert_eq!(news(&assigned), (vec![], false), "nothing new");
    // Another sandbox of the pod; the end of the first comes late.
    assigned.tell(&sandbox("c2", "p", "u", &["10.0.0.8"]));
    assigned.forget("c1");
    assert_eq!(of(&assigned, "p", "u"), ["10.0.0.8"]);
    assert_eq!(news(&assigned), (vec![told("u", &["10.0.0.8"])], false));
    // Another pod of that name.
    assigned.tell(&sandbox("c3", "p", "v", &["10.0.0.9"]));
    assert_eq!(
        news(&assigned),
        (vec![told("u", &[]), told("v", &["10.0.0.9"])], false),
        "what the first was given is over"
    );
    assigned.forget("c3");
    assert_eq!(news(&assigned), (vec![told("v", &[])], false));
    // One that nobody knows by a uid is for this node alone.
    assigned.tell(&sandbox("c4", "q", "", &["10.0.0.10"]));
    assert_eq!(of(&assigned, "q", "x"), ["10.0.0.10"]);
    assigned.tell(&sandbox("c5", "r", "w", &["10.0.0.11"]));
    assert_eq!(news(&assigned), (vec![told("w", &["10.0.0.11"])], false));
    assigned.tell_all();
    assert_eq!(news(&assigned), (vec![told("w", &["10.0.0.11"])], true));
    assigned.retain(&["c4".to_owned()].into());
    assert_eq!(news(&assigned), (vec![told("w", &[])], false));
    assert_eq!(of(&assigned, "q", "x"), ["10.0.0.10"]);
    // Another daemon hears of pods from now on.
    let silent = Assigned::default();
    silent.tell(&sandbox("c1", "p", "u", &["10.0.0.7"]));
    silent.fall_silent();
    silent.tell_all();
    assert_eq!(silent.news(), News::default());
    // Whoever the configuration has not had for long.
    let now = Instant::now();
    assigned.prune(|_| false, now);
    assigned.prune(|_| true, now + UNLISTED * 2);
    assigned.prune(|_| false, now + UNLISTED * 2 + Duration::from_secs(1));
    assert_eq!(of(&assigned, "q", "x"), ["10.0.0.10"]);
    assigned.prune(|_| false, now + UNLISTED * 3);
    assert!(of(&assigned, "q", "x").is_empty());
}

#[test]
fn they_are_bounded() {
    let assigned = Assigned::default();
    for n in 0..=MAX_SANDBOXES {
        assigned.tell(&sandbox(
            &format!("c{n}"),
            &format!("p{n}"),
            &format!("u{n}"),
            &["10.0.0.7"],
        ));
    }
    assert_eq!(assigned.state.lock().pods.len(), MAX_SANDBOXES);
    // Nobody takes the news.
    for n in 0..MAX_SANDBOXES {
        assigned.tell(&sandbox(
            &format!("d{n}"),
            &format!("p{n}"),
            &format!("v{n}"),
            &["10.0.0.7"],
        ));
    }
    assert!(assigned.state.lock().news.len() <= MAX_SANDBOXES);
    let (pods, all) = news(&assigned);
    assert_eq!((pods.len(), all), (MAX_SANDBOXES, true));
}

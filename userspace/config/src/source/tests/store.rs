//! The last good state: what a change upserts, removes, keeps and refuses.

use fairlead_api::{Kind, ObjectKey, Resource};

use super::*;
use crate::source::{Change, Loader, MAX_FILE_BYTES, Store};

struct Bed {
    dir: TempDir,
    loader: Loader,
    store: Store,
}

impl Bed {
    fn new() -> Self {
        let dir = TempDir::new();
        let loader = Loader::new([dir.path()]);
        Self { dir, loader, store: Store::default() }
    }

    fn apply(&mut self) -> Change {
        self.store.apply(self.loader.scan())
    }

    fn write(&mut self, name: &str, text: &str) -> Change {
        self.dir.write(name, text);
        self.apply()
    }
}

fn policy(name: &str, action: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: ns}}\nspec: {{action: {action}, rules: [{{}}]}}\n"
    )
}

fn policy_key(name: &str) -> ObjectKey {
    ObjectKey::new(Kind::AuthorizationPolicy, "ns", name)
}

fn names(keys: &[ObjectKey]) -> Vec<&str> {
    let mut names: Vec<&str> = keys.iter().map(|key| key.name.as_ref()).collect();
    names.sort_unstable();
    names
}

#[test]
fn only_what_differs_is_reported() {
    let mut bed = Bed::new();
    let two = format!("{}---\n{}", namespace("a", "1"), namespace("b", "1"));
    assert_eq!(names(&bed.write("x.yaml", &two).upserted), ["a", "b"]);
    assert!(bed.apply().is_empty());
    // Other text, same meaning.
    assert!(bed.write("x.yaml", &format!("# comment\n{two}")).is_empty());
    let change =
        bed.write("x.yaml", &format!("{}---\n{}", namespace("a", "1"), namespace("b", "2")));
    assert_eq!((names(&change.upserted), names(&change.removed)), (vec!["b"], vec![]));
    let change = bed.write("x.yaml", &namespace("b", "2"));
    assert_eq!((names(&change.upserted), names(&change.removed)), (vec![], vec!["a"]));
    // Moving an object to another file is no change.
    bed.dir.write("y.yaml", &namespace("b", "2"));
    bed.dir.write("x.yaml", "");
    assert!(bed.apply().is_empty());
    std::fs::remove_file(bed.dir.path().join("y.yaml")).unwrap();
    assert_eq!(names(&bed.apply().removed), ["b"]);
    assert!(bed.store.is_empty());
}

#[test]
fn a_bad_object_disturbs_neither_the_others_nor_its_own_good_version() {
    let mut bed = Bed::new();
    bed.write("x.yaml", &format!("{}---\n{}", policy("p", "DENY"), namespace("a", "1")));
    let change =
        bed.write("x.yaml", &format!("{}---\n{}", policy("p", "DENNY"), namespace("a", "2")));
    assert_eq!((names(&change.upserted), names(&change.removed)), (vec!["a"], vec![]));
    assert!(change.rejected_changed);
    assert_eq!(change.problems.len(), 1);
    assert!(bed.store.get(&policy_key("p")).is_some());
    assert!(bed.store.rejected()[&policy_key("p")].last_good);
    assert_eq!(bed.store.fail_closed().count(), 0);
    // Still there after a further change of the file, and gone only when it is taken out.
    bed.write("x.yaml", &format!("{}---\n{}", policy("p", "DENNY"), namespace("a", "3")));
    assert!(bed.store.get(&policy_key("p")).is_some());
    let change = bed.write("x.yaml", &namespace("a", "3"));
    assert_eq!(names(&change.removed), ["p"]);
    assert!(change.rejected_changed && bed.store.rejected().is_empty());
    assert!(bed.store.problems().is_empty());
}

#[test]
fn a_refused_object_that_moves_keeps_its_good_version() {
    for (from, to) in [("a.yaml", "b.yaml"), ("b.yaml", "a.yaml")] {
        let mut bed = Bed::new();
        bed.write(from, &format!("{}---\n{}", policy("p", "DENY"), namespace("a", "1")));
        bed.dir.write(from, &namespace("a", "1"));
        bed.dir.write(to, &policy("p", "DENNY"));
        let change = bed.apply();
        assert!(change.upserted.is_empty() && change.removed.is_empty(), "{change:?}");
        assert!(bed.store.rejected()[&policy_key("p")].last_good);
        // The file is renamed, and mended after that.
        std::fs::rename(bed.dir.path().join(to), bed.dir.path().join("c.yaml")).unwrap();
        let change = bed.apply();
        assert!(
            change.removed.is_empty() && bed.store.get(&policy_key("p")).is_some(),
            "{change:?}"
        );
        assert_eq!(names(&bed.write("c.yaml", &policy("p", "ALLOW")).upserted), ["p"]);
        std::fs::remove_file(bed.dir.path().join("c.yaml")).unwrap();
        assert_eq!(names(&bed.apply().removed), ["p"]);
    }
}

#[test]
fn a_policy_that_was_never_good_fails_closed() {
    let mut bed = Bed::new();
    let change = bed.write("x.yaml", &policy("p", "CUSTOM"));
    assert!(change.upserted.is_empty() && change.rejected_changed && !change.is_empty());
    let scopes: Vec<_> = bed.store.fail_closed().map(|(key, _)| key.clone()).collect();
    assert_eq!(scopes, [policy_key("p")]);
    let change = bed.write("x.yaml", &policy("p", "DENY"));
    assert!(change.rejected_changed);
    assert_eq!(names(&change.upserted), ["p"]);
    assert_eq!(bed.store.fail_closed().count(), 0);
    // A routing object that is refused opens nothing, and closes nothing either.
    bed.write("y.yaml", &object("networking.istio.io/v1", "VirtualService", "  hosts: []\n"));
    assert_eq!((bed.store.rejected().len(), bed.store.fail_closed().count()), (1, 0));
}

#[test]
fn what_nobody_can_tell_keeps_what_was_there() {
    let mut bed = Bed::new();
    bed.write("x.yaml", &format!("{}---\n{}", policy("p", "DENY"), policy("q", "DENY")));
    for broken in [
        policy("p", "DENY").replace("AuthorizationPolicy", "AuthorizationPolicyy"),
        policy("p", "DENY").replace("security.istio.io/v1", "security.istio.io/v9"),
        policy("p", "DENY").replace("name: p, ", ""),
        "not an object\n".to_owned(),
        "a: 1\na: 2\n".to_owned(),
    ] {
        let change = bed.write("x.yaml", &format!("{broken}---\n{}", policy("q", "ALLOW")));
        assert!(change.removed.is_empty(), "{broken}");
        assert!(bed.store.get(&policy_key("p")).is_some(), "{broken}");
        assert!(change.problems.iter().any(Problem::is_error), "{broken}");
    }
}

#[test]
fn a_file_that_cannot_be_read_changes_nothing() {
    let mut bed = Bed::new();
    let good = format!("{}---\n{}", policy("p", "DENY"), namespace("a", "1"));
    bed.write("x.yaml", &good);
    for broken in ["{", "a: [\n", "\u{0}", &good.replace("rules: [{}]}", "rules: [{}]")] {
        let change = bed.write("x.yaml", broken);
        assert!(change.is_empty(), "{broken:?}: {change:?}");
        assert_eq!(change.problems.len(), 1, "{broken:?}");
        assert_eq!(bed.store.len(), 2, "{broken:?}");
        assert_eq!(bed.store.unreadable().count(), 1);
    }
    std::fs::write(bed.dir.path().join("x.yaml"), [b'a', b':', 0xff]).unwrap();
    let change = bed.apply();
    assert_eq!((bed.store.len(), change.problems[0].message.as_str()), (2, "byte 2 is not UTF-8"));
    assert!(bed.write("x.yaml", &good).is_empty());
    assert!(bed.store.problems().is_empty() && bed.store.unreadable().count() == 0);
}

#[test]
fn what_may_hold_an_unknown_policy_is_suspect() {
    let mut bed = Bed::new();
    let suspect = |bed: &Bed| bed.store.suspects().count() == 1;
    let p = policy("p", "DENY");
    let (fatal, hidden) = ("---\na: [\n", "---\na: 1\na: 2\n");
    let nameless = p.replace("name: p, ", "");
    let slip = p.replace("AuthorizationPolicy", "AuthorisationPolicy");
    bed.write("x.yaml", &p);
    let cases = [
        // A file that was not there before.
        ("new.yaml", format!("{p}{fatal}"), true),
        ("new.yaml", format!("{}{hidden}", policy("q", "DENY")), false),
        ("new.yaml", p.replace("spec:", "kind: Pod\nspec:"), true),
        ("new.yaml", nameless, true),
        ("new.yaml", slip, true),
        ("new.yaml", format!("{}{fatal}", namespace("a", "1")), false),
        ("new.json", "{\"kind\": \"PeerAuthentication\"".to_owned(), true),
        ("new.yaml", "kind: ConfigMap\ndata: {mesh: 'rootNamespace: a'".to_owned(), true),
        // The policy that was there stays in force; another one is nowhere.
        ("x.yaml", format!("{p}{fatal}"), false),
        ("x.yaml", p.replace("spec:", "kind: Pod\nspec:"), false),
        ("x.yaml", format!("{p}---\n{}{fatal}", policy("q", "DENY")), true),
        ("x.yaml", format!("{p}---\n{}", p.replace("spec:", "kind: Pod\nspec:")), true),
        ("x.yaml", format!("{p}{hidden}"), false),
    ];
    for (file, text, expected) in cases {
        bed.write(file, &text);
        assert_eq!(suspect(&bed), expected, "{file}: {text}");
        assert!(bed.store.get(&policy_key("p")).is_some(), "{file}: {text}");
        if file != "x.yaml" {
            std::fs::remove_file(bed.dir.path().join(file)).unwrap();
            bed.apply();
        } else {
            bed.write("x.yaml", &p);
        }
        assert_eq!(bed.store.suspects().count(), 0);
    }
    std::fs::write(bed.dir.path().join("new.yaml"), [b'a', b':', 0xff]).unwrap();
    bed.apply();
    assert!(suspect(&bed), "nobody knows what it says");
}

#[test]
fn settings_of_the_mesh_that_never_were_good_fail_closed() {
    let mut bed = Bed::new();
    let map = |mesh: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata: {{mesh: '{mesh}'}}\n"
        )
    };
    bed.write("x.yaml", &map("outboundTrafficPolicy: {mode: NEVER}"));
    assert_eq!(bed.store.fail_closed().count(), 1);
    bed.write("x.yaml", &map("outboundTrafficPolicy: {mode: REGISTRY_ONLY}"));
    assert_eq!(bed.store.fail_closed().count(), 0);
    bed.write("x.yaml", &map("outboundTrafficPolicy: {mode: NEVER}"));
    assert_eq!(bed.store.fail_closed().count(), 0, "the last good ones are in force");
}

#[test]
fn a_misspelt_setting_of_security_keeps_the_last_good_ones() {
    let mut bed = Bed::new();
    let map = |mesh: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata: {{mesh: '{mesh}'}}\n"
        )
    };
    let good = map("pathNormalization: {normalization: MERGE_SLASHES}");
    bed.write("x.yaml", &good);
    assert!(bed.store.problems().is_empty());
    for (mesh, expected) in [
        ("pathNormalisation: {normalization: MERGE_SLASHES}", "did you mean pathNormalization?"),
        ("pathNormalization: {normalisation: MERGE_SLASHES}", "did you mean normalization?"),
        ("rootNamespaces: policies", "did you mean rootNamespace?"),
        ("trustDomian: example.org", "did you mean trustDomain?"),
        ("outboundTraficPolicy: {mode: REGISTRY_ONLY}", "did you mean outboundTrafficPolicy?"),
        ("enableAutoMTLs: false", "did you mean enableAutoMtls?"),
        ("meshMtlss: {minProtocolVersion: TLSV1_3}", "did you mean meshMTLS?"),
    ] {
        let change = bed.write("x.yaml", &map(mesh));
        assert!(change.upserted.is_empty() && change.removed.is_empty(), "{mesh}: {change:?}");
        let problems = bed.store.problems();
        let told = problems.iter().any(|p| p.is_error() && p.allowed.as_deref() == Some(expected));
        assert!(told, "{mesh}: {problems:?}");
        assert_eq!(bed.store.fail_closed().count(), 0, "{mesh}");
    }
    // What is Istio's, and what is nobody's, keeps nobody from anything.
    for (mesh, message) in [
        ("ingressClass: istio", "accepted, not enforced yet"),
        ("inboundTrafficPolicy: {mode: LOCALHOST}", "accepted, not enforced yet"),
        ("meshMTLS: {cipherSuites: [A]}", "accepted, not enforced yet"),
        ("somethingElse: 1", "this field is not known"),
    ] {
        let mesh = format!("trustDomain: {}.org, {mesh}", message.len() + mesh.len());
        let change = bed.write("x.yaml", &map(&format!("{{{mesh}}}")));
        assert_eq!(change.upserted.len(), 1, "{mesh}: {change:?}");
        assert!(change.problems.iter().any(|p| !p.is_error() && p.message == message), "{mesh}");
    }
    // With none before, everything is closed.
    bed.write("x.yaml", "");
    bed.write("x.yaml", &map("rootNamespce: policies"));
    assert_eq!(bed.store.fail_closed().count(), 1);
}

#[test]
fn of_several_versions_the_one_in_force_stays() {
    let mut bed = Bed::new();
    bed.write("b.yaml", &policy("p", "DENY"));
    let change = bed.write("c.yaml", &policy("p", "ALLOW"));
    assert!(change.upserted.is_empty());
    assert!(change.rejected_changed && bed.store.rejected()[&policy_key("p")].last_good);
    let problem = &bed.store.problems()[0];
    assert!(problem.is_error() && problem.file.ends_with("c.yaml"), "{problem}");
    assert!(problem.message.contains("b.yaml"), "{problem}");
    // A file that sorts before it changes nothing either, and is told.
    let change = bed.write("a.yaml", &policy("p", "ALLOW"));
    assert!(change.upserted.is_empty(), "{change:?}");
    assert!(change.problems.iter().any(|p| p.is_error() && p.file.ends_with("a.yaml")));
    assert_eq!(bed.store.file_of(&policy_key("p")).unwrap().file_name().unwrap(), "b.yaml");
    std::fs::remove_file(bed.dir.path().join("a.yaml")).unwrap();
    assert!(bed.apply().upserted.is_empty());
    // The one in force goes: the next takes its place.
    std::fs::remove_file(bed.dir.path().join("b.yaml")).unwrap();
    assert_eq!(names(&bed.apply().upserted), ["p"]);
    assert_eq!(bed.store.file_of(&policy_key("p")).unwrap().file_name().unwrap(), "c.yaml");
    bed.write("b.yaml", &policy("p", "DENY"));
    std::fs::remove_file(bed.dir.path().join("c.yaml")).unwrap();
    assert!(bed.apply().rejected_changed);
    assert!(bed.store.problems().is_empty() && bed.store.rejected().is_empty());
    // Twice in one file.
    let change =
        bed.write("b.yaml", &format!("{}---\n{}", policy("p", "DENY"), policy("p", "ALLOW")));
    assert!(change.is_empty() || change.upserted.is_empty(), "{change:?}");
    assert!(bed.store.rejected().contains_key(&policy_key("p")));
    assert_eq!(bed.store.problems().len(), 1);
}

#[test]
fn a_path_that_cannot_be_listed_loses_nothing() {
    let dir = TempDir::new();
    let sub = dir.path().join("sub");
    std::fs::create_dir(&sub).unwrap();
    std::fs::write(sub.join("a.yaml"), namespace("a", "1")).unwrap();
    let mut loader = Loader::new([sub.clone()]);
    let mut store = Store::default();
    assert_eq!(store.apply(loader.scan()).upserted.len(), 1);
    std::fs::rename(&sub, dir.path().join("away")).unwrap();
    let change = store.apply(loader.scan());
    assert!(change.is_empty() && store.len() == 1, "{change:?}");
    assert_eq!(change.problems.len(), 1);
    std::fs::rename(dir.path().join("away"), &sub).unwrap();
    assert!(store.apply(loader.scan()).is_empty());
    assert!(store.problems().is_empty());
    std::fs::remove_file(sub.join("a.yaml")).unwrap();
    assert_eq!(store.apply(loader.scan()).removed.len(), 1);
}

#[test]
fn what_stays_unreadable_is_told_once() {
    let mut bed = Bed::new();
    std::fs::File::create(bed.dir.path().join("x.yaml"))
        .unwrap()
        .set_len(MAX_FILE_BYTES + 1)
        .unwrap();
    let change = bed.apply();
    assert!(change.problems[0].message.contains("too large"), "{:?}", change.problems);
    assert!(change.problems[0].allowed.is_some());
    assert!(bed.loader.scan().is_empty());
    assert_eq!(bed.store.problems().len(), 1);
    assert_eq!(bed.write("x.yaml", &namespace("a", "1")).upserted.len(), 1);
    assert!(bed.store.problems().is_empty());
}

#[test]
fn which_files_count() {
    let bed = TempDir::new();
    for (name, object) in [("a.yaml", "a"), ("b.yml", "b"), (".hidden.yaml", "h"), ("c.txt", "t")] {
        bed.write(name, &namespace(object, "1"));
    }
    bed.write(
        "j.json",
        "{\"apiVersion\":\"v1\",\"kind\":\"Namespace\",\"metadata\":{\"name\":\"j\"}}",
    );
    std::fs::create_dir_all(bed.path().join("deep/er")).unwrap();
    bed.write("deep/er/d.yaml", &namespace("d", "1"));
    std::os::unix::fs::symlink("..", bed.path().join("deep/loop")).unwrap();
    std::os::unix::fs::symlink("a.yaml", bed.path().join("z.yaml")).unwrap();
    std::os::unix::fs::symlink("nowhere", bed.path().join("dangling")).unwrap();
    let mut store = Store::default();
    let change = store.apply(Loader::new([bed.path()]).scan());
    assert_eq!(names(&change.upserted), ["a", "b", "d", "j"]);
    assert_eq!(change.problems, []);
    // A file that is given by name may be called as it likes.
    let change = Store::default().apply(Loader::new([bed.path().join("c.txt")]).scan());
    assert_eq!(names(&change.upserted), ["t"]);
    let change = Store::default().apply(Loader::new([bed.path().join("missing.yaml")]).scan());
    assert_eq!(change.problems.len(), 1);
}

#[test]
fn what_is_left_of_a_refused_pod_or_namespace_counts() {
    let mut bed = Bed::new();
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {istio-injection: enabled}, generation: soon}\n";
    let pod = |labels: &str, ip: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: a, namespace: shop, labels: {labels}, annotations: {{fairlead.io/netns: /n/a}}}}\nspec: {{nodeName: n, serviceAccountName: a}}\nstatus: {{podIP: {ip}}}\n"
        )
    };
    let pod_key = ObjectKey::new(Kind::Pod, "shop", "a");
    let refused = |bed: &Bed| -> Option<bool> {
        let Resource::Pod(pod) = bed.store.get(&pod_key)? else { return None };
        Some(pod.metadata.annotations.contains_key(crate::enrolment::REFUSED_ANNOTATION))
    };
    let unenrolled =
        |bed: &Bed| bed.store.unenrolled().map(ToString::to_string).collect::<Vec<_>>();
    // Neither can be used as it is; who is in the mesh is known all the same.
    let change = bed.write("x.yaml", &format!("{namespace}{}", pod("{app: a}", "nowhere")));
    assert_eq!(names(&change.upserted), ["a", "shop"]);
    assert_eq!(refused(&bed), Some(true));
    let Some(Resource::Pod(left)) = bed.store.get(&pod_key) else { panic!("no pod") };
    assert_eq!(left.spec.node_name, "n");
    assert_eq!(left.metadata.annotations["fairlead.io/netns"], "/n/a");
    assert_eq!(unenrolled(&bed).len(), 2);
    assert!(bed.apply().is_empty());
    // Mended, and broken again: the good version stays.
    let good = namespace.replace(", generation: soon", "");
    let change = bed.write("x.yaml", &format!("{good}{}", pod("{app: a}", "10.0.0.1")));
    assert_eq!(names(&change.upserted), ["a"], "the namespace is what it was");
    assert!(change.removed.is_empty());
    assert_eq!((refused(&bed), unenrolled(&bed)), (Some(false), vec![]));
    let change = bed.write("x.yaml", &format!("{good}{}", pod("{app: a}", "nowhere")));
    assert!(change.upserted.is_empty() && change.removed.is_empty(), "{change:?}");
    assert_eq!((refused(&bed), unenrolled(&bed)), (Some(false), vec![]));
    // Gone is gone; and where the labels cannot be read, nothing is left but the word.
    let change = bed.write("x.yaml", &good);
    assert_eq!(change.removed, std::slice::from_ref(&pod_key));
    let change = bed.write("x.yaml", &format!("{good}{}", pod("[app, a]", "10.0.0.1")));
    assert!(change.upserted.is_empty(), "{change:?}");
    assert_eq!((refused(&bed), unenrolled(&bed).len()), (None, 1));
    bed.write("x.yaml", &format!("{good}{}", pod("{app: a}", "nowhere")));
    assert_eq!(refused(&bed), Some(true));
    let change = bed.write("x.yaml", &good);
    assert_eq!(change.removed, std::slice::from_ref(&pod_key));
    assert!(unenrolled(&bed).is_empty());
}

#[test]
fn what_is_let_go_stays_known() {
    let mut bed = Bed::new();
    let service = |name: &str, port: u16| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: ns}}\nspec: {{ports: [{{port: {port}}}]}}\n"
        )
    };
    let key = |name: &str| ObjectKey::new(Kind::Service, "ns", name);
    let ports = |bed: &Bed, name: &str| -> Vec<u16> {
        let Some(Resource::Service(service)) = bed.store.get(&key(name)) else { panic!("{name}") };
        service.spec.ports.iter().map(|port| port.port).collect()
    };
    bed.write("a.yaml", &service("a", 80));
    bed.write("b.yaml", &format!("{}---\n{}", service("b", 80), namespace("n", "1")));
    bed.write("c.yaml", &service("c", 80));
    bed.write("c2.yaml", &service("c", 90));
    let keys: Vec<ObjectKey> = bed.store.iter().map(|(key, _)| key.clone()).collect();
    bed.store.let_go(&keys);
    assert!(ports(&bed, "a").is_empty() && ports(&bed, "b").is_empty());
    assert_eq!(ports(&bed, "c"), [80], "needed when the other file goes");
    let Some(Resource::Namespace(_)) = bed.store.get(&ObjectKey::new(Kind::Namespace, "", "n"))
    else {
        panic!("another kind")
    };
    assert!(bed.apply().is_empty());
    // A version that is refused changes nothing, one that is good does.
    assert!(bed.write("a.yaml", &service("a", 80).replace("80", "no")).upserted.is_empty());
    assert!(bed.store.rejected()[&key("a")].last_good);
    assert_eq!(names(&bed.write("a.yaml", &service("a", 81)).upserted), ["a"]);
    assert_eq!(ports(&bed, "a"), [81]);
    // One of two holders goes, whichever was let go.
    bed.store.let_go(&[key("a")]);
    bed.write("a2.yaml", &service("a", 82));
    std::fs::remove_file(bed.dir.path().join("a.yaml")).unwrap();
    let change = bed.apply();
    assert_eq!((names(&change.upserted), ports(&bed, "a")), (vec!["a"], vec![82]));
    std::fs::remove_file(bed.dir.path().join("a2.yaml")).unwrap();
    std::fs::remove_file(bed.dir.path().join("b.yaml")).unwrap();
    let mut removed = names(&bed.apply().removed).join(" ");
    removed.push('.');
    assert_eq!(removed, "a b n.");
}

use fairlead_api::WorkloadSelector;
use fairlead_api::security::MutualTls;

use super::*;

const ROOT: &str = "istio-system";

struct Written {
    namespace: &'static str,
    name: &'static str,
    created: &'static str,
    app: &'static str,
    mode: MutualTlsMode,
    ports: &'static [(u16, MutualTlsMode)],
}

fn written(namespace: &'static str, app: &'static str, mode: MutualTlsMode) -> Written {
    Written { namespace, name: "p", created: "2026-01-01T00:00:00Z", app, mode, ports: &[] }
}

fn object(w: &Written) -> Arc<PeerAuthentication> {
    let mut object = PeerAuthentication::default();
    object.metadata.namespace = w.namespace.to_owned();
    object.metadata.name = w.name.to_owned();
    object.metadata.creation_timestamp = Some(w.created.to_owned());
    object.spec.mtls = Some(MutualTls { mode: w.mode });
    if !w.app.is_empty() {
        let match_labels = [("app".to_owned(), w.app.to_owned())].into();
        object.spec.selector = Some(WorkloadSelector { match_labels });
    }
    object.spec.port_level_mtls =
        w.ports.iter().map(|(p, mode)| (*p, MutualTls { mode: *mode })).collect();
    Arc::new(object)
}

/// What holds for the pod `app: web` in namespace `a`, and how many problems were told.
fn resolve(all: &[Written], closed: &[FailClosed]) -> (PeerAuth, usize) {
    let mut problems = Vec::new();
    let objects: Vec<_> = all.iter().map(object).collect();
    let index = compile(&objects, closed, &MeshSettings::default(), &mut problems);
    let workload = super::super::authz::tests::workload("a", "web");
    (index.for_workload(&workload), problems.len())
}

fn mode_of(all: &[Written]) -> MtlsMode {
    resolve(all, &[]).0.mode
}

#[test]
fn the_narrowest_scope_that_says_something() {
    use MutualTlsMode::{Disable, Permissive, Strict, Unset};
    assert_eq!(mode_of(&[]), MtlsMode::Permissive);
    for (mesh, namespace, own, want) in [
        (Strict, Unset, Unset, MtlsMode::Strict),
        (Strict, Permissive, Unset, MtlsMode::Permissive),
        (Strict, Permissive, Disable, MtlsMode::Disable),
        (Unset, Strict, Unset, MtlsMode::Strict),
        (Permissive, Unset, Strict, MtlsMode::Strict),
        (Unset, Unset, Unset, MtlsMode::Permissive),
        (Disable, Unset, Unset, MtlsMode::Disable),
    ] {
        let all = [
            written(ROOT, "", mesh),
            Written { name: "n", ..written("a", "", namespace) },
            Written { name: "w", ..written("a", "web", own) },
        ];
        assert_eq!(mode_of(&all), want, "{mesh:?} {namespace:?} {own:?}");
    }
    // Others' do not concern it.
    let others = [written("b", "", Strict), Written { name: "x", ..written("a", "db", Strict) }];
    assert_eq!(mode_of(&others), MtlsMode::Permissive);
}

#[test]
fn the_oldest_of_a_scope() {
    use MutualTlsMode::{Disable, Permissive, Strict};
    let at = |created, name, mode| Written { created, name, ..written("a", "web", mode) };
    let older = at("2025-01-01T00:00:00Z", "z", Strict);
    let younger = at("2026-01-01T00:00:00Z", "a", Permissive);
    assert_eq!(mode_of(&[younger, older]), MtlsMode::Strict);
    let same = [at("2026-01-01T00:00:00Z", "b", Strict), at("2026-01-01T00:00:00Z", "a", Disable)];
    assert_eq!(mode_of(&same), MtlsMode::Disable);
}

#[test]
fn ports() {
    use MutualTlsMode::{Disable, Strict, Unset};
    let own = Written { ports: &[(90, Unset), (80, Disable)], ..written("a", "web", Unset) };
    let mesh = Written { name: "m", ..written(ROOT, "", Strict) };
    let (auth, problems) = resolve(&[own, mesh], &[]);
    assert_eq!(auth.mode, MtlsMode::Strict);
    assert_eq!(auth.ports, [(80, MtlsMode::Disable), (90, MtlsMode::Strict)]);
    assert_eq!(problems, 0);
    let wide = Written { ports: &[(80, Disable)], ..written("a", "", Strict) };
    let (auth, problems) = resolve(&[wide], &[]);
    assert_eq!((auth.ports.len(), problems), (0, 1), "ports need a selector");
}

#[test]
fn a_selector_in_the_root_namespace_has_no_effect() {
    let (auth, problems) = resolve(&[written(ROOT, "web", MutualTlsMode::Disable)], &[]);
    assert_eq!((auth.mode, problems), (MtlsMode::Permissive, 1));
}

#[test]
fn a_refused_one_is_strict() {
    use MutualTlsMode::{Disable, Permissive};
    let closed = |app: &str| FailClosed {
        key: ObjectKey::new(Kind::PeerAuthentication, "a", "broken"),
        selector: if app.is_empty() {
            Labels::default()
        } else {
            [("app", app)].into_iter().collect()
        },
    };
    let mode = |all: &[Written], closed| resolve(all, &[closed]).0.mode;
    let older = |app| Written { created: "2020-01-01T00:00:00Z", ..written("a", app, Disable) };
    assert_eq!(mode(&[older("")], closed("")), MtlsMode::Strict);
    assert_eq!(mode(&[older("web")], closed("web")), MtlsMode::Strict);
    assert_eq!(mode(&[written("a", "", Permissive)], closed("db")), MtlsMode::Permissive);
    assert_eq!(mode(&[older("web")], closed("")), MtlsMode::Disable, "the narrower scope spoke");
}

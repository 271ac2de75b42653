use std::collections::VecDeque;
use std::io;

use fairlead_wire::cni::Sandbox;

use super::*;

/// A daemon that answers what it was told to, and is then dead.
#[derive(Default)]
struct Says {
    answers: VecDeque<Response>,
    asked: Vec<Request>,
    waits: usize,
    patience: usize,
}

impl Daemon for &mut Says {
    fn ask(&mut self, request: &Request, _: Instant) -> io::Result<Response> {
        self.asked.push(request.clone());
        self.answers.pop_front().ok_or_else(|| io::ErrorKind::ConnectionRefused.into())
    }

    fn wait(&mut self, _: Instant) -> bool {
        self.waits += 1;
        self.waits <= self.patience
    }
}

struct Knows(Result<bool, &'static str>);

impl Membership for Knows {
    fn is_to_be_enrolled(&mut self, _: &Sandbox, _: Instant) -> io::Result<bool> {
        self.0.map_err(io::Error::other)
    }
}

fn env(command: &str, namespace: &str) -> Env {
    Env {
        command: command.into(),
        container_id: "c1".into(),
        netns: "/run/netns/x".into(),
        args: format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME=p;K8S_POD_UID=u-1"
        ),
    }
}

const PREV: &str = r#"{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","mac":"00:11"}],"ips":[
  {"interface":0,"address":"10.1.0.7/24","gateway":"10.1.0.1"},{"address":"fd00::7/64"}],
  "routes":[{"dst":"0.0.0.0/0"}],"dns":{},"more":[18446744073709551615,1.5,null]}"#;

fn conf(version: &str) -> String {
    format!(
        r#"{{"cniVersion":"{version}","name":"n","type":"fairlead-cni","namespace":"fairlead-system",
          "excludeNamespaces":["infra"],"api":"/nonexistent/api.json","prevResult":{PREV},
          "cni.dev/valid-attachments":[{{"containerID":"a","ifname":"eth0"}}],"runtimeConfig":{{}}}}"#
    )
}

fn go(
    says: &mut Says,
    knows: Result<bool, &'static str>,
    env: &Env,
    conf: &str,
) -> Result<Option<Value>, CniError> {
    run(env, conf, |_| (says, Knows(knows)))
}

fn says(answers: &[Response]) -> Says {
    Says { answers: answers.iter().cloned().collect(), ..Says::default() }
}

#[test]
fn the_result_of_the_plugins_before_is_handed_on() {
    for version in VERSIONS {
        let mut daemon = says(&[Response::Enrolled]);
        let result = go(&mut daemon, Err("unused"), &env("ADD", "shop"), &conf(version)).unwrap();
        let prev: Value = serde_json::from_str(PREV).unwrap();
        assert_eq!(result, Some(prev));
        let Some(Request::Add(sandbox)) = daemon.asked.first() else { panic!() };
        assert_eq!(
            sandbox.ips,
            ["10.1.0.7".parse::<std::net::IpAddr>().unwrap(), "fd00::7".parse().unwrap()]
        );
        assert_eq!((sandbox.pod_uid.as_str(), sandbox.netns.as_str()), ("u-1", "/run/netns/x"));
    }
}

#[test]
fn addresses_are_read_in_all_formats() {
    let ips = |version: &str, prev: &str| {
        let conf = format!(
            r#"{{"cniVersion":"{version}","name":"n","type":"fairlead-cni","prevResult":{prev}}}"#
        );
        let ips = Conf::parse(&conf).unwrap().ips();
        ips.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    // As bridge and host-local say it until 0.4.0, on interfaces of both sides.
    let old = r#"{"cniVersion":"0.4.0","interfaces":[{"name":"cni0","mac":"00:11"},
      {"name":"veth1","mac":"00:12"},{"name":"eth0","mac":"00:13","sandbox":"/run/netns/x"}],
      "ips":[{"version":"4","interface":2,"address":"10.1.0.7/24","gateway":"10.1.0.1"},
      {"version":"6","interface":2,"address":"fd00::7/64"},
      {"version":"4","interface":0,"address":"10.1.0.1/24"}],"dns":{}}"#;
    for version in ["0.3.0", "0.3.1", "0.4.0"] {
        assert_eq!(ips(version, old), ["10.1.0.7", "fd00::7"], "{version}");
    }
    // Without a word of where an interface is, or of which one an address is on.
    let bare = r#"{"interfaces":[{"name":"cali1"}],"ips":[{"interface":0,"address":"10.1.0.8/32"},
      {"address":"10.1.0.9/32"},{"interface":9,"address":"10.1.0.10"},{"interface":-1,"address":"x"}]}"#;
    assert_eq!(ips("1.0.0", bare), ["10.1.0.8", "10.1.0.9", "10.1.0.10"]);
    for none in ["{}", r#"{"ips":{}}"#, r#"{"ips":[{}, 7, {"address":7}]}"#] {
        assert!(ips("1.1.0", none).is_empty(), "{none}");
    }
    let many = (0..100).map(|n| format!(r#"{{"address":"10.1.1.{n}/24"}}"#)).collect::<Vec<_>>();
    assert_eq!(ips("1.0.0", &format!(r#"{{"ips":[{}]}}"#, many.join(","))).len(), 32);
}

#[test]
fn a_pod_to_be_enrolled_does_not_start_without_the_daemon() {
    let add = env("ADD", "shop");
    let error = go(&mut says(&[]), Ok(true), &add, &conf("0.4.0")).unwrap_err();
    assert_eq!(error.code, Code::TryAgainLater);
    let json = error.to_json("0.4.0");
    assert_eq!((json["code"].as_u64(), json["cniVersion"].as_str()), (Some(11), Some("0.4.0")));
    // Nor where nobody can say what it is.
    let error = go(&mut says(&[]), Err("no route"), &add, &conf("1.0.0")).unwrap_err();
    assert!(error.details.contains("no route"), "{error}");
    assert_eq!(error.code, Code::TryAgainLater);
    // The daemon comes back while the runtime waits.
    let mut late = Says { patience: 1, ..says(&[Response::Unknown, Response::Enrolled]) };
    assert!(go(&mut late, Ok(true), &add, &conf("1.0.0")).is_ok());
    assert_eq!((late.waits, late.asked.len()), (1, 2));
    let refused = Response::Refused { reason: "no certificate".into() };
    let error = go(&mut says(&[refused]), Ok(true), &add, &conf("1.0.0")).unwrap_err();
    assert_eq!(error.details, "no certificate");
}

#[test]
fn other_pods_start() {
    let conf = conf("1.1.0");
    assert!(go(&mut says(&[]), Ok(false), &env("ADD", "shop"), &conf).is_ok());
    assert!(go(&mut says(&[Response::Unknown]), Ok(false), &env("ADD", "shop"), &conf).is_ok());
    assert!(go(&mut says(&[Response::Outside]), Err(""), &env("ADD", "shop"), &conf).is_ok());
    for namespace in ["kube-system", "infra"] {
        assert!(go(&mut says(&[]), Err("down"), &env("ADD", namespace), &conf).is_ok());
        assert!(go(&mut says(&[]), Ok(true), &env("ADD", namespace), &conf).is_err());
    }
    let mut unasked = says(&[]);
    assert!(go(&mut unasked, Err("down"), &env("ADD", "fairlead-system"), &conf).is_ok());
    assert!(unasked.asked.is_empty(), "what tells the daemon about pods must not wait for it");
    let container = Env { args: String::new(), ..env("ADD", "") };
    assert!(go(&mut says(&[]), Err("down"), &container, &conf).is_ok(), "no pod");
}

#[test]
fn the_other_commands() {
    let conf = conf("1.1.0");
    let mut daemon = says(&[Response::Done]);
    assert_eq!(go(&mut daemon, Err(""), &env("DEL", "shop"), &conf), Ok(None));
    let told = Request::Del { container_id: "c1".into(), pod_uid: "u-1".into() };
    assert_eq!(daemon.asked, [told]);
    assert_eq!(go(&mut says(&[]), Err(""), &env("DEL", "shop"), &conf), Ok(None), "it goes anyway");
    let bare = r#"{"cniVersion":"0.4.0","name":"n","type":"fairlead-cni"}"#;
    assert_eq!(go(&mut says(&[]), Err(""), &env("DEL", "shop"), bare), Ok(None), "no prevResult");

    let mut daemon = says(&[Response::Done]);
    assert_eq!(go(&mut daemon, Err(""), &env("GC", ""), &conf), Ok(None));
    assert_eq!(daemon.asked, [Request::Gc { valid: vec!["a".into()] }]);
    // Without the list nothing is forgotten; with an empty one all is.
    let unsaid = r#"{"cniVersion":"1.1.0","name":"n","type":"fairlead-cni"}"#;
    let mut daemon = says(&[Response::Done]);
    let error = go(&mut daemon, Err(""), &env("GC", ""), unsaid).unwrap_err();
    assert_eq!((error.code, daemon.asked.len()), (Code::InvalidConfig, 0));
    for none in ["[]", "null"] {
        let conf = unsaid.replace('}', &format!(r#","cni.dev/valid-attachments":{none}}}"#));
        let mut daemon = says(&[Response::Done]);
        assert_eq!(go(&mut daemon, Err(""), &env("GC", ""), &conf), Ok(None));
        assert_eq!(daemon.asked, [Request::Gc { valid: vec![] }]);
    }

    assert_eq!(
        go(&mut says(&[Response::Enrolled]), Err(""), &env("CHECK", "shop"), &conf),
        Ok(None)
    );
    assert!(go(&mut says(&[Response::Unknown]), Ok(true), &env("CHECK", "shop"), &conf).is_err());
    assert!(go(&mut says(&[]), Ok(false), &env("CHECK", "shop"), &conf).is_ok());

    assert_eq!(go(&mut says(&[Response::Done]), Err(""), &env("STATUS", ""), &conf), Ok(None));
    let error = go(&mut says(&[]), Err(""), &env("STATUS", ""), &conf).unwrap_err();
    assert_eq!(error.code, Code::PluginNotAvailable);
}

#[test]
fn status_fails_for_want_of_the_daemon_only_if_asked_to() {
    let dir = std::env::temp_dir().join(format!("fl-cni-status-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let api = dir.join("api.json");
    std::fs::write(&api, r#"{"servers":["https://a"],"ca":"","token":"t"}"#).unwrap();
    let with = |more: &str| {
        format!(r#"{{"cniVersion":"1.1.0","name":"n","type":"t","api":{api:?}{more}}}"#)
    };
    let asked = |conf: &str| go(&mut says(&[]), Err(""), &env("STATUS", ""), conf);
    assert_eq!(asked(&with("")), Ok(None), "other pods can be served");
    assert!(asked(&with(r#","statusRequiresDaemon":true"#)).is_err());
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn versions() {
    let version = go(&mut says(&[]), Err(""), &env("VERSION", ""), "{}").unwrap().unwrap();
    assert_eq!(version["supportedVersions"].as_array().unwrap().len(), VERSIONS.len());
    for (command, version) in [
        ("STATUS", "1.0.0"),
        ("GC", "0.4.0"),
        ("CHECK", "0.3.1"),
        ("ADD", "0.2.0"),
        ("ADD", "2.0.0"),
    ] {
        let error = go(&mut says(&[]), Err(""), &env(command, "shop"), &conf(version)).unwrap_err();
        assert_eq!(error.code, Code::Version, "{command} {version}");
    }
    let code = |env: &Env, conf: &str| go(&mut says(&[]), Err(""), env, conf).unwrap_err().code;
    assert_eq!(code(&env("ADD", "shop"), "{"), Code::Decode);
    assert_eq!(code(&env("MAKE", "shop"), "{}"), Code::Environment);
    let bare = r#"{"cniVersion":"1.0.0","name":"n","type":"fairlead-cni"}"#;
    assert_eq!(code(&env("ADD", "shop"), bare), Code::InvalidConfig);
    let nameless = Env { netns: String::new(), ..env("ADD", "shop") };
    assert_eq!(code(&nameless, &conf("1.0.0")), Code::Environment);
}

#[test]
fn servers() {
    let parsed = |text| api::host_and_port(text).ok();
    assert_eq!(parsed("https://10.0.0.1:6443"), Some(("10.0.0.1".into(), 6443)));
    assert_eq!(parsed("https://[fd00::1]:6443/"), Some(("fd00::1".into(), 6443)));
    assert_eq!(parsed("https://[fd00::1]"), Some(("fd00::1".into(), 443)));
    assert_eq!(parsed("https://api.example"), Some(("api.example".into(), 443)));
    for wrong in ["http://a:1", "https://", "https://a:x", "a"] {
        assert_eq!(parsed(wrong), None, "{wrong}");
    }
}

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use super::chain::{self, Entered};

const OURS: &str = r#"{"type":"fairlead-cni","socket":"/s"}"#;
const LIST: &str = "{\n \"cniVersion\": \"0.4.0\", \"name\": \"pod\",\n \"plugins\": [ {\"type\": \"ptp\"} , {\"type\": \"portmap\"}\n ]\n}\n";
const SINGLE: &str =
    "{\n\t\"cniVersion\": \"0.3.1\", \"name\": \"single\", \"type\": \"bridge\"\n}\n";

/// A directory of configurations.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("fl-cni-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn put(&self, name: &str, text: &str) -> &Self {
        fs::write(self.0.join(name), text).unwrap();
        self
    }

    fn enter(&self) -> (String, bool) {
        match chain::enter(&self.0, OURS).unwrap() {
            Entered::In { file, changed } => {
                (file.file_name().unwrap().to_str().unwrap().to_owned(), changed)
            }
            Entered::NoNetwork => ("none".to_owned(), false),
        }
    }

    /// Everything in it.
    fn all(&self) -> Vec<(String, String)> {
        let mut all: Vec<_> = fs::read_dir(&self.0)
            .unwrap()
            .map(|e| e.unwrap())
            .map(|e| (e.file_name().into_string().unwrap(), fs::read_to_string(e.path()).unwrap()))
            .collect();
        all.sort();
        all
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_list_is_entered_and_left_without_a_trace() {
    let dir = Dir::new();
    dir.put("20-b.conflist", LIST).put("10-a.conflist", LIST).put("readme", "x");
    dir.put("05-broken.conf", "{");
    let before = dir.all();
    assert_eq!(dir.enter(), ("10-a.conflist".into(), true));
    assert!(chain::is_entered(&dir.0, OURS).unwrap());
    assert_eq!(dir.enter(), ("10-a.conflist".into(), false), "once");
    assert!(chain::leave(&dir.0).unwrap());
    assert_eq!(dir.all(), before);
    assert!(!chain::leave(&dir.0).unwrap());
}

#[test]
fn whoever_comes_first_is_entered() {
    let dir = Dir::new();
    assert_eq!(dir.enter().0, "none");
    dir.put("10-a.conflist", LIST);
    dir.enter();
    dir.put("10-a.conflist", &LIST.replace("ptp", "macvlan"));
    assert_eq!(dir.enter(), ("10-a.conflist".into(), true), "rewritten");
    dir.put("00-z.conflist", LIST);
    assert!(!chain::is_entered(&dir.0, OURS).unwrap());
    assert_eq!(dir.enter(), ("00-z.conflist".into(), true), "another one is first");
    assert_eq!(dir.all()[1].1, LIST.replace("ptp", "macvlan"), "the other one is left");
    fs::remove_file(dir.0.join("00-z.conflist")).unwrap();
    assert_eq!(dir.enter(), ("10-a.conflist".into(), true), "and it is first again");
}

#[test]
fn a_single_configuration_is_put_aside_and_comes_back() {
    let dir = Dir::new();
    dir.put("10-a.conf", SINGLE).put("20-b.conflist", LIST);
    let before = dir.all();
    assert_eq!(dir.enter(), ("10-a.conflist".into(), true));
    assert_eq!(dir.enter(), ("10-a.conflist".into(), false));
    assert!(!dir.0.join("10-a.conf").exists(), "a runtime would take it first");
    assert!(chain::leave(&dir.0).unwrap());
    assert_eq!(dir.all(), before);

    // Its author writes it anew while we stand in for it.
    dir.enter();
    dir.put("10-a.conf", &SINGLE.replace("bridge", "ipvlan"));
    assert_eq!(dir.enter(), ("10-a.conflist".into(), true));
    assert!(fs::read_to_string(dir.0.join("10-a.conflist")).unwrap().contains("ipvlan"));
    assert!(chain::leave(&dir.0).unwrap());
    assert_eq!(dir.all()[0], ("10-a.conf".into(), SINGLE.replace("bridge", "ipvlan")));
    assert_eq!(dir.all().len(), 2);
}

#[test]
fn a_list_that_others_joined_stays_theirs() {
    let dir = Dir::new();
    dir.put("10-a.conf", SINGLE);
    dir.enter();
    let path = dir.0.join("10-a.conflist");
    let joined =
        fs::read_to_string(&path).unwrap().replace(OURS, &format!("{OURS},{{\"type\":\"late\"}}"));
    fs::write(&path, joined).unwrap();
    assert!(chain::leave(&dir.0).unwrap());
    let all = dir.all();
    assert_eq!(all.len(), 1, "{all:?}");
    assert!(all[0].1.contains("late") && !all[0].1.contains("fairlead"));
}

#[test]
fn what_cannot_be_entered_says_why() {
    let dir = Dir::new();
    dir.put("10-a.conf", SINGLE).put("10-a.conflist", LIST);
    let error = chain::enter(&dir.0, OURS).unwrap_err().to_string();
    assert!(error.contains("somebody else's"), "{error}");
}

#[test]
fn empty_directories_go_and_others_stay() {
    let dir = Dir::new();
    let at = |path: &str| dir.0.join(path);
    for path in ["conf", "bin", "var/fairlead/cni", "run/fairlead"] {
        fs::create_dir_all(at(path)).unwrap();
    }
    let places = super::Places {
        cni_conf_dir: at("conf"),
        cni_bin_dir: at("bin"),
        state_dir: at("var/fairlead/cni"),
    };
    fs::write(at("var/fairlead/kept"), "").unwrap();
    super::uninstall(&places, &at("run/fairlead")).unwrap();
    assert!(!at("var/fairlead/cni").exists() && !at("run/fairlead").exists());
    assert!(at("var/fairlead/kept").exists(), "what is not empty stays");
    fs::remove_file(at("var/fairlead/kept")).unwrap();
    super::uninstall(&places, &at("run/fairlead")).unwrap();
    assert!(!at("var/fairlead").exists() && at("var").exists() && at("bin").exists());
    // A place of another name is somebody's.
    fs::create_dir_all(at("other/cni")).unwrap();
    let places = super::Places { state_dir: at("other/cni"), ..places };
    super::uninstall(&places, &at("run/fairlead")).unwrap();
    assert!(!at("other/cni").exists() && at("other").exists());
}

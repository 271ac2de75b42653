use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fairlead_wire::config::{Key, Resource};

use super::super::objects::path_of;
use super::*;

struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("fairlead-state-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        Self(path)
    }

    fn file(&self) -> PathBuf {
        self.0.join("configuration.state")
    }

    fn open(&self) -> (Journal, Option<StateError>) {
        Journal::open(&self.0, whose()).unwrap()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn whose() -> Identity {
    Identity { node: "n".into(), cluster: "c".into(), trim: 1 }
}

fn key(name: &str) -> Key {
    Key {
        api_version: "v1".into(),
        kind: "Pod".into(),
        namespace: "default".into(),
        name: name.into(),
    }
}

fn resource(name: &str, version: &str, json: &str) -> Resource {
    let (version, json) = (version.into(), json.into());
    Resource { key: Some(key(name)), version, json, generation: 1 }
}

fn path(name: &str) -> Arc<PathBuf> {
    Arc::new(path_of(&key(name)).unwrap())
}

fn filled(dir: &Dir) -> Journal {
    let (mut journal, refused) = dir.open();
    assert!(refused.is_none(), "{refused:?}");
    journal.upsert(&path("a"), &resource("a", "1", "{\"a\":1}")).unwrap();
    journal.upsert(&path("b"), &resource("b", "1", "{\"b\":1}")).unwrap();
    journal.trust(b"roots".to_vec()).unwrap();
    journal.commit().unwrap();
    journal.upsert(&path("a"), &resource("a", "2", "{\"a\":2}")).unwrap();
    journal.remove(&path("b"), &key("b")).unwrap();
    journal.upsert(&path("c"), &resource("c", "1", "{\"c\":1}")).unwrap();
    journal.commit().unwrap();
    journal
}

fn held(journal: &Journal) -> Vec<(String, String)> {
    let mut held: Vec<_> = journal
        .contents()
        .objects
        .values()
        .map(|place| journal.resource(place).unwrap())
        .map(|r| (r.version, String::from_utf8(r.json).unwrap()))
        .collect();
    held.sort();
    held
}

fn expected() -> Vec<(String, String)> {
    [("1", "{\"c\":1}"), ("2", "{\"a\":2}")].map(|(v, j)| (v.into(), j.into())).to_vec()
}

#[test]
fn what_was_committed_is_there_again_and_nobody_else_reads_it() {
    let dir = Dir::new("again");
    drop(filled(&dir));
    for (path, mode) in [(dir.0.as_path(), 0o700), (&dir.file(), 0o600)] {
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, mode);
    }
    let (journal, refused) = dir.open();
    assert!(refused.is_none());
    assert_eq!(held(&journal), expected());
    assert_eq!(journal.contents().trust.as_deref(), Some(&b"roots"[..]));
    let age = SystemTime::now().duration_since(journal.as_of()).unwrap();
    assert!(age < Duration::from_secs(60), "{age:?}");
    // One daemon at a time.
    assert!(Journal::open(&dir.0, whose()).is_err());
}

#[test]
fn what_was_not_committed_does_not_count() {
    let dir = Dir::new("torn");
    let mut journal = filled(&dir);
    journal.upsert(&path("d"), &resource("d", "1", "{}")).unwrap();
    drop(journal);
    let whole = fs::read(dir.file()).unwrap();
    let committed = {
        let (journal, _) = dir.open();
        assert_eq!(held(&journal), expected());
        fs::metadata(dir.file()).unwrap().len() as usize
    };
    assert!(committed < whole.len(), "the rest has not been cut off");
    // Whatever of it had reached the disk.
    for length in committed..whole.len() {
        fs::write(dir.file(), &whole[..length]).unwrap();
        let (mut journal, refused) = dir.open();
        assert!(refused.is_none(), "{length}: {refused:?}");
        assert_eq!(held(&journal), expected());
        // And it can be written on.
        journal.remove(&path("c"), &key("c")).unwrap();
        journal.commit().unwrap();
        drop(journal);
        assert_eq!(held(&dir.open().0).len(), 1, "{length}");
    }
}

#[test]
fn a_single_damaged_byte_refuses_all_of_it() {
    let dir = Dir::new("damaged");
    drop(filled(&dir));
    let whole = fs::read(dir.file()).unwrap();
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x10;
        fs::write(dir.file(), &damaged).unwrap();
        fs::set_permissions(dir.file(), fs::Permissions::from_mode(0o600)).unwrap();
        let (journal, refused) = dir.open();
        // A length that points beyond the end looks like a write that did not finish: then what
        // was committed before counts, or nothing.
        let torn = refused.is_none() && journal.contents().end < whole.len() as u64;
        assert!(refused.is_some() || torn, "byte {at} changed, and nobody noticed");
        let versions: Vec<_> = held(&journal);
        assert!(versions != expected(), "byte {at}");
        assert!(refused.is_none() || versions.is_empty(), "byte {at}");
        if refused.is_some() {
            assert!(dir.0.join("configuration.state.refused").exists());
        }
    }
}

#[test]
fn records_cannot_be_left_out_or_exchanged() {
    let dir = Dir::new("order");
    let (mut journal, _) = dir.open();
    let mut ends = vec![fs::metadata(dir.0.join("configuration.new")).unwrap().len() as usize];
    for name in ["a", "b"] {
        journal.upsert(&path(name), &resource(name, "1", "{}")).unwrap();
        ends.push(fs::metadata(dir.0.join("configuration.new")).unwrap().len() as usize);
    }
    journal.commit().unwrap();
    drop(journal);
    let whole = fs::read(dir.file()).unwrap();
    let [start, middle, end] = ends[..] else { panic!("{ends:?}") };
    let (a, b) = (&whole[start..middle], &whole[middle..end]);
    for pieces in [
        [&whole[..start], b, a, &whole[end..]].concat(),
        [&whole[..start], a, &whole[end..]].concat(),
        [&whole[..start], a, a, b, &whole[end..]].concat(),
    ] {
        fs::write(dir.file(), &pieces).unwrap();
        fs::set_permissions(dir.file(), fs::Permissions::from_mode(0o600)).unwrap();
        let (journal, refused) = dir.open();
        assert!(matches!(refused, Some(StateError::Damaged { .. })), "{refused:?}");
        assert!(held(&journal).is_empty());
    }
}

#[test]
fn state_of_another_node_cluster_or_version_is_not_used() {
    for (name, other) in [
        ("node", Identity { node: "m".into(), ..whose() }),
        ("cluster", Identity { cluster: "d".into(), ..whose() }),
        ("trim", Identity { trim: 2, ..whose() }),
    ] {
        let dir = Dir::new(name);
        drop(filled(&dir));
        let (journal, refused) = Journal::open(&dir.0, other).unwrap();
        assert!(matches!(refused, Some(StateError::Foreign { .. })), "{refused:?}");
        assert!(journal.contents().objects.is_empty());
    }
}

#[test]
fn a_file_that_others_may_touch_is_not_used() {
    let dir = Dir::new("mode");
    drop(filled(&dir));
    fs::set_permissions(dir.file(), fs::Permissions::from_mode(0o660)).unwrap();
    assert!(matches!(dir.open().1, Some(StateError::Foreign { what: "mode", .. })));
    let dir = Dir::new("link");
    drop(filled(&dir));
    let elsewhere = dir.0.join("elsewhere");
    fs::rename(dir.file(), &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, dir.file()).unwrap();
    assert!(dir.open().1.is_some());
}

#[test]
fn what_is_outdated_is_left_behind_in_time() {
    let dir = Dir::new("compact");
    let mut journal = filled(&dir);
    let big = format!("{{\"x\":\"{}\"}}", "y".repeat(100_000));
    for n in 0..200 {
        journal.upsert(&path("big"), &resource("big", &n.to_string(), &big)).unwrap();
        journal.commit().unwrap();
        let length = fs::metadata(dir.file()).unwrap().len();
        assert!(length < 5 << 20, "{length} bytes for 100 KB");
    }
    drop(journal);
    let (journal, refused) = dir.open();
    assert!(refused.is_none());
    assert_eq!(journal.contents().objects.len(), 3);
    let place = &journal.contents().objects[&path("big")];
    assert_eq!(journal.resource(place).unwrap().version, "199");
    assert_eq!(journal.contents().trust.as_deref(), Some(&b"roots"[..]));
}

#[test]
fn a_new_beginning_counts_with_its_first_commit() {
    let dir = Dir::new("clear");
    let mut journal = filled(&dir);
    journal.clear().unwrap();
    journal.upsert(&path("z"), &resource("z", "1", "{}")).unwrap();
    drop(journal);
    let (mut journal, _) = dir.open();
    assert_eq!(held(&journal), expected(), "what was there has gone too early");
    journal.clear().unwrap();
    journal.upsert(&path("z"), &resource("z", "1", "{}")).unwrap();
    journal.commit().unwrap();
    drop(journal);
    assert_eq!(held(&dir.open().0), [("1".to_owned(), "{}".to_owned())]);
}

#[tokio::test]
async fn the_thread_writes_what_it_is_handed_in_order() {
    let dir = Dir::new("keeper");
    let (journal, _) = dir.open();
    let keeper = Keeper::start(journal).unwrap();
    let patience = Duration::from_secs(5);
    for n in 0..100 {
        let name = format!("p{}", n % 10);
        let entry = Entry::Upsert(path(&name), resource(&name, &n.to_string(), "{}"));
        keeper.write(vec![entry], n % 2 == 1, patience).await;
    }
    let name = "never".to_owned();
    keeper
        .write(vec![Entry::Upsert(path(&name), resource(&name, "1", "{}"))], false, patience)
        .await;
    keeper.rollback();
    let later = SystemTime::now();
    // The queue is most likely full here, and nothing is lost by that.
    while !keeper.touch(later) {
        assert!(!keeper.is_lost());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    drop(keeper);
    let (journal, refused) = dir.open();
    assert!(refused.is_none(), "{refused:?}");
    assert_eq!(journal.contents().objects.len(), 10);
    let mut versions: Vec<u32> = held(&journal).iter().map(|(v, _)| v.parse().unwrap()).collect();
    versions.sort_unstable();
    assert_eq!(versions, (90..100).collect::<Vec<_>>());
    assert!(journal.as_of() >= later - Duration::from_millis(1));
    assert!(!Path::new(&dir.0.join("configuration.new")).exists());
}

#[tokio::test]
async fn a_directory_that_another_still_has_is_taken_up_when_it_is_free() {
    let dir = Dir::new("late");
    let keeper = Keeper::start(filled(&dir)).unwrap();
    let hold = keeper.hold();
    hold.let_go().await;
    let (other, _) = dir.open();
    hold.take_up().await;
    // What comes meanwhile is for nobody, and keeps nobody from asking.
    let patience = Duration::from_secs(5);
    let meanwhile = |n: u32| vec![Entry::Upsert(path("m"), resource("m", &n.to_string(), "{}"))];
    for n in 0..15 {
        keeper.write(meanwhile(n), true, patience).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(!keeper.is_lost(), "it is the other's");
    }
    assert_eq!(held(&other), expected());
    drop(other);
    let until = tokio::time::Instant::now() + Duration::from_secs(20);
    for n in 0.. {
        if keeper.is_lost() {
            break;
        }
        assert!(tokio::time::Instant::now() < until, "it was never taken up");
        keeper.write(meanwhile(n), true, patience).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // What is there counts until everything has come once more.
    assert!(keeper.clear());
    keeper.write(vec![Entry::Upsert(path("z"), resource("z", "1", "{}"))], true, patience).await;
    drop((hold, keeper));
    assert_eq!(held(&dir.open().0), [("1".to_owned(), "{}".to_owned())]);
}

#[tokio::test]
async fn a_directory_that_was_left_again_is_not_taken_up() {
    let dir = Dir::new("left");
    let keeper = Keeper::start(filled(&dir)).unwrap();
    let hold = keeper.hold();
    hold.let_go().await;
    let (other, _) = dir.open();
    hold.take_up().await;
    // The next successor has come.
    hold.let_go().await;
    drop(other);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(!keeper.is_lost());
    assert_eq!(held(&dir.open().0), expected());
}

#[test]
fn a_directory_that_cannot_be_written_to_is_asked_for_again() {
    let dir = Dir::new("again-up");
    let mut journal = filled(&dir);
    journal.let_go().unwrap();
    // In the way of the new file.
    let in_the_way = dir.0.join("configuration.new");
    fs::create_dir(&in_the_way).unwrap();
    assert!(journal.take_up().is_err());
    fs::remove_dir(&in_the_way).unwrap();
    journal.take_up().unwrap();
}

#[tokio::test]
async fn a_thread_that_panics_writes_again_once_everything_has_come_anew() {
    let dir = Dir::new("panics");
    let keeper = Keeper::start(filled(&dir)).unwrap();
    let patience = Duration::from_secs(5);
    let entry = |name: &str| vec![Entry::Upsert(path(name), resource(name, "1", "{}"))];
    keeper.write(entry("half"), false, patience).await;
    assert!(keeper.panic());
    let until = tokio::time::Instant::now() + Duration::from_secs(20);
    while !keeper.is_lost() {
        assert!(tokio::time::Instant::now() < until, "nobody noticed");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    keeper.write(entry("later"), true, patience).await;
    assert!(keeper.clear());
    keeper.write(entry("z"), true, patience).await;
    drop(keeper);
    assert_eq!(held(&dir.open().0), [("1".to_owned(), "{}".to_owned())]);

    // What was committed before stays until then.
    let dir = Dir::new("panicked");
    let keeper = Keeper::start(filled(&dir)).unwrap();
    keeper.write(entry("half"), false, patience).await;
    assert!(keeper.panic());
    drop(keeper);
    assert_eq!(held(&dir.open().0), expected());
}

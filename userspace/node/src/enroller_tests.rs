use std::cell::{Cell, RefCell};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use super::*;

const LONG: Duration = Duration::from_secs(60);

/// A successor that may take pods, and the predecessor's end of the line.
fn line(name: &str) -> (Successor, BufReader<UnixStream>) {
    let dir: PathBuf =
        std::env::temp_dir().join(format!("fairlead-taking-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    let path = dir.join("h.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let successor = std::thread::spawn(move || match Successor::meet(&path).unwrap() {
        Met::Serving(mut successor) => {
            successor.take().unwrap();
            successor
        }
        Met::Nobody | Met::Vacant(_) => panic!("nobody serves"),
    });
    let mut predecessor = BufReader::new(listener.accept().unwrap().0);
    for answer in ["beside\n", "frozen\n"] {
        predecessor.read_line(&mut String::new()).unwrap();
        predecessor.get_mut().write_all(answer.as_bytes()).unwrap();
    }
    let successor = successor.join().unwrap();
    std::fs::remove_dir_all(dir).unwrap();
    (successor, predecessor)
}

/// Pods of paper, and what befalls whoever takes the second.
struct Pods<F> {
    taken: RefCell<Vec<u32>>,
    all: u32,
    befalls: F,
}

impl<F: Fn()> Pods<F> {
    fn new(all: u32, befalls: F) -> Self {
        Self { taken: RefCell::default(), all, befalls }
    }

    /// As enrolment does it.
    fn pass(&self, now: Instant, may_go_on: &mut dyn FnMut() -> bool) -> Instant {
        for pod in 1..=self.all {
            if !may_go_on() {
                break;
            }
            if pod == 2 {
                (self.befalls)();
            }
            self.taken.borrow_mut().push(pod);
        }
        now
    }

    fn left(&self) -> anyhow::Result<usize> {
        Ok(self.all as usize - self.taken.borrow().len())
    }

    fn take(
        &self,
        line: &mut Successor,
        look: Duration,
        give_up: Duration,
    ) -> anyhow::Result<bool> {
        let (_changed, told) = sync_channel(1);
        take_pods(line, (look, give_up), |now, may| self.pass(now, may), || self.left(), &told)
    }
}

#[test]
fn a_successor_that_is_called_back_takes_no_further_pod() {
    let (mut line, mut predecessor) = line("back");
    let pods = Pods::new(5, || {
        predecessor.get_ref().write_all(b"back\n").unwrap();
    });
    let error = pods.take(&mut line, LONG, LONG).unwrap_err();
    assert!(error.to_string().contains("taken its pods back"), "{error}");
    assert_eq!(*pods.taken.borrow(), [1, 2]);
    // The predecessor waits for this.
    drop(line);
    let mut rest = String::new();
    predecessor.read_line(&mut rest).unwrap();
    assert_eq!(rest, "");
}

#[test]
fn a_successor_that_takes_too_long_stops_by_itself() {
    let (mut line, _predecessor) = line("slow");
    let give_up = Duration::from_millis(50);
    let pods = Pods::new(5, || std::thread::sleep(give_up));
    let error = pods.take(&mut line, Duration::ZERO, give_up).unwrap_err();
    assert!(error.to_string().contains("3 pods could not be taken over"), "{error}");
    assert_eq!(*pods.taken.borrow(), [1, 2]);
    // What takes just as long and is the last does not matter.
    let pods = Pods::new(2, || std::thread::sleep(give_up));
    assert!(pods.take(&mut line, Duration::ZERO, give_up).unwrap());
}

#[test]
fn a_successor_whose_predecessor_dies_takes_all() {
    let (mut line, predecessor) = line("dies");
    let predecessor = Cell::new(Some(predecessor));
    let pods = Pods::new(5, || drop(predecessor.take()));
    assert!(pods.take(&mut line, LONG, LONG).unwrap());
    assert_eq!(*pods.taken.borrow(), [1, 2, 3, 4, 5]);
}

#[test]
fn pods_that_cannot_be_found_are_not_waited_for_for_ever() {
    let (mut line, _predecessor) = line("lost");
    let passes = Cell::new(0);
    let pass = |now, _: &mut dyn FnMut() -> bool| {
        passes.set(passes.get() + 1);
        now
    };
    let (changed, told) = sync_channel(1);
    let look = Duration::from_millis(20);
    assert!(take_pods(&mut line, (look, LONG), pass, || Ok(1), &told).unwrap());
    assert!(passes.get() > 1);
    // A daemon that ends looks no further.
    drop(changed);
    assert!(!take_pods(&mut line, (LONG, LONG), pass, || Ok(1), &told).unwrap());
}

//! Files of the kernel: mounts, CPUs, the times of a process.

use fairlead_capture::fuzz;
use fairlead_node::process::cpu_time;

use crate::input;

/// The kernel's words are taken as they are documented; anything else is nothing, never a panic.
pub fn run(data: &[u8]) {
    let Some(text) = input::text(data) else { return };
    if let Some(root) = fuzz::cgroup2_root(text) {
        let root = root.as_os_str().as_encoded_bytes();
        assert!(text.contains(" - cgroup2 ") && root.len() <= text.len());
        let space = |b: &u8| *b == b' ';
        assert!(!root.iter().any(space) || text.contains(r"\040"));
        // Unless the backslash itself was escaped.
        let escaped = String::from_utf8_lossy(root).contains(r"\040");
        assert!(!escaped || text.contains(r"\134"), "still escaped");
    }
    if let Some(cpus) = fuzz::cpus(text) {
        assert!(cpus > 0);
        let last: String = text.trim().chars().rev().take_while(char::is_ascii_digit).collect();
        let last: String = last.chars().rev().collect();
        assert_eq!(last.parse::<usize>().ok().and_then(|n| n.checked_add(1)), Some(cpus));
    }
    let _ = cpu_time(text);
    if let Some(uid) = fairlead_node::discovery::fuzz::pod_uid(text) {
        assert!((32..=36).contains(&uid.len()) && text.contains("pod"));
        assert!(uid.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-'));
    }
}

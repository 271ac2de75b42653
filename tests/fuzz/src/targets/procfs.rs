//! Files of the kernel: mounts, CPUs, the times of a process.

use fairlead_capture::fuzz;
use fairlead_node::process::cpu_time;

use crate::input;

/// The kernel's words are taken as they are documented; anything else is nothing, never a panic.
pub fn run(data: &[u8]) {
    let Some(text) = input::text(data) else { return };
    if let Some(root) = fuzz::cgroup2_root(text) {
        let root = root.to_str().expect("of a text");
        assert!(text.contains(" - cgroup2 "));
        let line = text.lines().find(|line| line.contains(" - cgroup2 ")).unwrap_or_default();
        assert!(!root.contains(' ') || line.contains(r"\040"), "{root:?} of {line:?}");
    }
    if let Some(cpus) = fuzz::cpus(text) {
        assert!(cpus > 0);
        let last: String = text.trim().chars().rev().take_while(char::is_ascii_digit).collect();
        let last: String = last.chars().rev().collect();
        assert_eq!(last.parse::<usize>().ok().and_then(|n| n.checked_add(1)), Some(cpus));
    }
    let _ = cpu_time(text);
}

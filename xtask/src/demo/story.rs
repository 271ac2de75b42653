//! How the demo speaks: short sentences, and a measured fact for each promise.

use std::time::Instant;

use anyhow::{Result, bail};

/// The teller of the story; counts what was seen.
pub(super) struct Story {
    start: Instant,
    chapter: usize,
    color: bool,
    /// Facts that were seen as promised.
    pub(super) seen: usize,
}

impl Story {
    /// A story that begins now.
    pub(super) fn new() -> Self {
        let color = std::io::IsTerminal::is_terminal(&std::io::stdout());
        Self { start: Instant::now(), chapter: 0, color, seen: 0 }
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// A new step begins.
    pub(super) fn chapter(&mut self, title: &str) {
        self.chapter += 1;
        let at = self.start.elapsed().as_secs_f64();
        println!(
            "\n{}",
            self.paint("1", &format!("{}. {title}", self.chapter)) + &format!("  [{at:.1} s]")
        );
    }

    /// A sentence.
    pub(super) fn say(&self, text: &str) {
        println!("   {text}");
    }

    /// A promise that was measured; the demo fails when it does not hold.
    pub(super) fn promise(&mut self, holds: bool, fact: &str) -> Result<()> {
        if !holds {
            println!("   {} {fact}", self.paint("31", "✗"));
            bail!("not as promised: {fact}");
        }
        println!("   {} {fact}", self.paint("32", "✓"));
        self.seen += 1;
        Ok(())
    }

    /// Seconds since the beginning.
    pub(super) fn seconds(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }
}

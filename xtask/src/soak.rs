//! `cargo xtask soak`: the long versions of the scenarios that time can break.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use crate::test::{self, Tally};
use crate::tools;
use crate::workspace::heading;

/// Scenarios that take their length from `FAIRLEAD_SOAK_SECONDS`.
const LONG: &[&str] = &["rotation_under", "race::first", "churn::", "many_idle"];

/// Runs rotation, kills, churn and idle connections for as long as it is told.
///
/// Examples:
///   cargo xtask soak --for 10m
///   cargo xtask soak --for 2h --filter rotation
///   cargo xtask soak --filter kube_workloads   # on a cluster: 500 Jobs; by count, not by time
///   cargo xtask soak --filter kube_failures    # five boots of a node with 200 pods on it
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// How long in all: 90s, 10m, 2h
    #[arg(long = "for", value_name = "DURATION", default_value = "10m")]
    length: String,
    /// Only scenarios whose name contains this
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Profile of the daemon and of the scenarios
    #[arg(long, default_value = "release")]
    profile: String,
}

/// `90s`, `10m`, `2h`.
fn duration(text: &str) -> Result<Duration> {
    let at = text.len().saturating_sub(1);
    let (number, unit) = text.split_at_checked(at).unwrap_or((text, ""));
    let seconds = match (number.parse::<u64>(), unit) {
        (Ok(n), "s") => n,
        (Ok(n), "m") => n * 60,
        (Ok(n), "h") => n * 3600,
        _ => bail!("{text:?} is no duration: write 90s, 10m or 2h"),
    };
    Ok(Duration::from_secs(seconds))
}

/// Runs the task.
pub(crate) fn run(args: &Args) -> Result<()> {
    let length = duration(&args.length)?;
    ensure!(length >= Duration::from_secs(10), "--for has to be at least 10s");
    tools::require_root("soak")?;
    tools::require(tools::NETWORK)?;
    tools::require(tools::ON_NODES)?;
    test::build(&args.profile)?;
    let filters: Vec<&str> =
        args.filter.as_deref().map_or_else(|| LONG.to_vec(), |filter| vec![filter]);
    let start = Instant::now();
    let each = length.as_secs() / u64::try_from(filters.len())?;
    let mut tally = Tally::default();
    for filter in &filters {
        heading(&format!("{filter}, {each} s"));
        let env = [("FAIRLEAD_SOAK_SECONDS", each.to_string())];
        test::scenarios(&args.profile, 1, &[filter], &env, &mut tally)?;
    }
    println!("after {:.0} s", start.elapsed().as_secs_f64());
    println!("{} passed, {} failed", tally.passed, tally.failed);
    ensure!(tally.failed == 0, "failed: {}", tally.failures.join(", "));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(duration("90s").unwrap(), Duration::from_secs(90));
        assert_eq!(duration("2h").unwrap(), Duration::from_secs(7200));
        assert!(duration("").is_err() && duration("10").is_err() && duration("m").is_err());
    }
}

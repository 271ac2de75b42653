//! `cargo xtask soak`: the long versions of the scenarios that time can break.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use crate::test::{self, Tally};
use crate::tools;
use crate::workspace::heading;

/// Scenarios that take their length from `FAIRLEAD_SOAK_SECONDS`.
const LONG: &[&str] = &["rotation_under", "race::first", "churn::", "many_idle", "kube_source::"];

/// Scenarios on a cluster that do more where it is set, and how much: they take as long as that
/// takes.
const MORE: &[(&str, &str)] = &[
    ("kube_workloads::", "500 Jobs"),
    ("kube_enrolment::", "1,000 pods whose first act is connect(), all processors busy"),
    ("kube_failures::kills", "five boots of a node with 200 pods on it"),
];

/// Runs rotation, kills, churn and idle connections for as long as it is told, and then what goes by
/// count on clusters.
///
/// Examples:
///   cargo xtask soak --for 10m
///   cargo xtask soak --for 2h --filter rotation
///   cargo xtask soak --for 1h --filter kube_source   # on a cluster: an hour without the controller
///   cargo xtask soak --filter kube_workloads   # on a cluster: 500 Jobs
///   cargo xtask soak --filter kube_enrolment   # 1,000 pods whose first act is connect()
///   cargo xtask soak --filter kube_failures    # five boots of a node with 200 pods on it
#[derive(clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// How long in all, without what goes by count (an hour or more): 90s, 10m, 2h
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

/// Scenarios that run together.
#[derive(Debug, PartialEq)]
struct Part<'a> {
    filter: &'a str,
    seconds: u64,
    /// For people: how much of it.
    what: String,
}

/// What is to run: the length is shared by those that go by time. Where a filter names one that goes
/// by count, the length is nothing to it but that it is a soak.
fn parts(length: Duration, filter: Option<&str>) -> Result<Vec<Part<'_>>> {
    let timed = |filter, seconds| Part { filter, seconds, what: format!("{seconds} s") };
    if let Some(filter) = filter {
        return Ok(vec![timed(filter, length.as_secs())]);
    }
    let each = length.as_secs() / u64::try_from(LONG.len())?;
    let counted =
        MORE.iter().map(|(filter, what)| Part { filter, seconds: 1, what: (*what).to_owned() });
    Ok(LONG.iter().map(|filter| timed(filter, each)).chain(counted).collect())
}

/// Runs the task.
pub(crate) fn run(args: &Args) -> Result<()> {
    let length = duration(&args.length)?;
    ensure!(length >= Duration::from_secs(10), "--for has to be at least 10s");
    tools::require_root("soak")?;
    tools::require(tools::NETWORK)?;
    tools::require(tools::ON_NODES)?;
    test::build(&args.profile)?;
    let start = Instant::now();
    let mut tally = Tally::default();
    for Part { filter, seconds, what } in parts(length, args.filter.as_deref())? {
        heading(&format!("{filter}, {what}"));
        let env = [("FAIRLEAD_SOAK_SECONDS", seconds.to_string())];
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
    fn the_length_is_shared_by_what_goes_by_time() {
        let all = parts(Duration::from_secs(500), None).unwrap();
        assert_eq!(all.len(), LONG.len() + MORE.len());
        assert_eq!(all.iter().filter(|part| part.seconds == 100).count(), LONG.len());
        // Anything but nothing makes the others do more.
        assert!(all.iter().all(|part| part.seconds > 0));
        let one = parts(Duration::from_secs(400), Some("kube_workloads")).unwrap();
        assert_eq!(one, [Part { filter: "kube_workloads", seconds: 400, what: "400 s".into() }]);
    }

    #[test]
    fn durations() {
        assert_eq!(duration("90s").unwrap(), Duration::from_secs(90));
        assert_eq!(duration("2h").unwrap(), Duration::from_secs(7200));
        assert!(duration("").is_err() && duration("10").is_err() && duration("m").is_err());
    }
}

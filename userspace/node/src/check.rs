//! `fairlead-node --check`: what this node lacks, in words, before anything is changed on it.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use fairlead_capture::CaptureSettings;
use serde::Serialize;

use crate::settings::Settings;

/// The oldest kernel, as `major.minor`.
const OLDEST: (u32, u32) = (6, 1);
/// Capabilities of the daemon by their number: what they are for, and whether it cannot do without.
/// (`CAP_SYS_ADMIN` includes `CAP_BPF` and `CAP_PERFMON`.)
const CAPABILITIES: &[(u32, &str, bool, &str)] = &[
    (12, "CAP_NET_ADMIN", true, "network programs cannot be attached"),
    (21, "CAP_SYS_ADMIN", true, "pods' network namespaces cannot be entered"),
    (19, "CAP_SYS_PTRACE", false, "running pods cannot be found by their processes"),
];

/// One line of the report.
#[derive(Debug, Serialize)]
pub struct Line {
    /// What was looked at.
    pub check: String,
    /// How it is.
    pub result: Verdict,
    /// What was found, or what to do.
    pub detail: String,
}

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it has to be.
    Ok,
    /// Fairlead runs without it, and does less.
    Missing,
    /// Fairlead cannot run here.
    Failed,
}

impl Verdict {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Missing => "missing",
            Self::Failed => "FAILED",
        }
    }
}

fn line(check: &str, good: bool, required: bool, detail: impl Into<String>) -> Line {
    let result = match (good, required) {
        (true, _) => Verdict::Ok,
        (false, false) => Verdict::Missing,
        (false, true) => Verdict::Failed,
    };
    Line { check: check.to_owned(), result, detail: detail.into() }
}

/// Prints the report, as a table or as JSON. The exit code is a failure if Fairlead cannot run here.
#[must_use]
pub fn run(settings: &Settings, json: bool) -> ExitCode {
    let lines = look(settings);
    let text = if json {
        serde_json::to_string_pretty(&lines).unwrap_or_default() + "\n"
    } else {
        table(&lines)
    };
    // Whoever reads no further has read enough.
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
    let fails = lines.iter().any(|line| line.result == Verdict::Failed);
    if fails { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn table(lines: &[Line]) -> String {
    let width = lines.iter().map(|line| line.check.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for Line { check, result, detail } in lines {
        text.push_str(&format!("{check:width$}  {:7}  {detail}\n", result.as_str()));
    }
    let failed = lines.iter().filter(|line| line.result == Verdict::Failed).count();
    text.push_str(&match failed {
        0 => "\nFairlead can run on this node.\n".to_owned(),
        1 => "\nFairlead cannot run on this node: 1 requirement is not met.\n".to_owned(),
        n => format!("\nFairlead cannot run on this node: {n} requirements are not met.\n"),
    });
    text
}

/// Everything that is looked at.
#[must_use]
pub fn look(settings: &Settings) -> Vec<Line> {
    let release = rustix::system::uname();
    let mut lines = vec![kernel(&release.release().to_string_lossy())];
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    lines.extend(capabilities(&status));
    for feature in fairlead_capture::features() {
        let detail = if feature.present { "" } else { feature.without };
        lines.push(line(feature.name, feature.present, feature.required, detail));
    }
    let root = match &settings.capture.cgroup_root {
        Some(root) => Ok(root.clone()),
        None => fairlead_capture::cgroup2_root().map_err(|error| error.to_string()),
    };
    let pin_dir = &settings.capture.pin_dir;
    lines.push(bpffs(pin_dir));
    match root {
        Err(error) => lines.push(line(
            "cgroup v2",
            false,
            true,
            format!("{error}; mount -t cgroup2 none /sys/fs/cgroup"),
        )),
        Ok(root) if !fairlead_capture::is_cgroup2(&root).unwrap_or(false) => lines.push(line(
            "cgroup v2",
            false,
            true,
            format!(
                "{} is not on one: --cgroup-root has to name a directory below",
                root.display()
            ),
        )),
        Ok(root) => {
            lines.push(line("cgroup v2", true, true, root.display().to_string()));
            lines.push(pods_cgroup(settings, &root));
            let wanted = CaptureSettings { pin_dir: pin_dir.clone(), ..CaptureSettings::new(root) };
            lines.extend(hooks(&wanted));
        }
    }
    lines
}

fn kernel(release: &str) -> Line {
    let mut numbers = release.split(['.', '-']).map(|part| part.parse::<u32>().ok());
    let version = numbers.next().flatten().zip(numbers.next().flatten());
    let (major, minor) = OLDEST;
    let good = version.is_some_and(|version| version >= OLDEST);
    let detail = if good {
        release.to_owned()
    } else {
        format!("{release}: Fairlead needs Linux {major}.{minor} or newer")
    };
    line("kernel", good, true, detail)
}

fn capabilities(status: &str) -> Vec<Line> {
    let field = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let held = field.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or(0);
    CAPABILITIES
        .iter()
        .map(|(number, name, required, without)| {
            let good = held >> number & 1 == 1;
            line(name, good, *required, if good { "" } else { without })
        })
        .collect()
}

fn bpffs(pin_dir: &Path) -> Line {
    let existing = pin_dir.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("/"));
    let good = fairlead_capture::is_bpffs(existing).unwrap_or(false);
    // The daemon mounts one at its customary place.
    let mountable = existing == Path::new("/sys/fs/bpf");
    let detail = match (good, mountable) {
        (true, _) => existing.display().to_string(),
        (false, true) => "none on /sys/fs/bpf yet: the daemon mounts it".to_owned(),
        (false, false) => {
            format!("{} is on none; mount -t bpf bpf /sys/fs/bpf", pin_dir.display())
        }
    };
    line("bpf file system", good, !mountable, detail)
}

fn pods_cgroup(settings: &Settings, root: &Path) -> Line {
    let found = match &settings.capture.pods_cgroup {
        Some(dir) => dir.is_dir().then(|| dir.clone()),
        None => {
            ["kubepods.slice", "kubepods"].iter().map(|name| root.join(name)).find(|d| d.is_dir())
        }
    };
    let detail = found.as_ref().map_or_else(
        || "kubelet has made none: probes of the kubelet do not pass under STRICT".to_owned(),
        |dir| dir.display().to_string(),
    );
    line("cgroup of pods", found.is_some(), false, detail)
}

fn hooks(settings: &CaptureSettings) -> Vec<Line> {
    match fairlead_capture::attempt(settings) {
        Err(error) => vec![line("kernel programs", false, true, error.to_string())],
        Ok(attempts) => attempts
            .into_iter()
            .map(|attempt| {
                let good = attempt.failure.is_none();
                let name = format!("hook {}", attempt.hook);
                line(&name, good, true, attempt.failure.unwrap_or_default())
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels() {
        for (release, good) in [
            ("6.18.0-rc3+", true),
            ("6.1.0-13-amd64", true),
            ("7.0", true),
            ("6.0.9", false),
            ("5.15.0-91-generic", false),
            ("", false),
            ("linux", false),
        ] {
            let line = kernel(release);
            assert_eq!(line.result == Verdict::Ok, good, "{line:?}");
            assert!(good || line.detail.contains("6.1 or newer"), "{line:?}");
        }
    }

    #[test]
    fn what_is_missing_is_said() {
        let lines = capabilities("Name:\tx\nCapEff:\t0000000000001000\n");
        let verdicts: Vec<_> = lines.iter().map(|line| line.result).collect();
        assert_eq!(verdicts, [Verdict::Ok, Verdict::Failed, Verdict::Missing]);
        let text = table(&lines);
        assert!(text.contains("CAP_SYS_ADMIN   FAILED   pods' network namespaces"), "{text}");
        assert!(text.ends_with("cannot run on this node: 1 requirement is not met.\n"), "{text}");
        assert!(table(&[kernel("6.1.0")]).ends_with("can run on this node.\n"));
        assert_eq!(bpffs(Path::new("/proc/x")).result, Verdict::Failed);
    }
}

//! Container images without a Docker daemon: one layer with a few files, written as the archive
//! that `docker save` writes and `ctr images import` takes. The same input gives the same bytes.

use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::system;

/// Time stamp of all files and of the image itself: what was built when is not part of it.
const EPOCH: &str = "1970-01-01T00:00:00Z";

/// Users that an image may run as, so that `runAsNonRoot` has a name to show.
const PASSWD: &str = "root:x:0:0:root:/:/sbin/nologin\n\
                      nonroot:x:65532:65532:nonroot:/:/sbin/nologin\n";

/// What a file of an image is made of.
#[derive(Clone, Debug)]
pub enum Content {
    /// A file of this machine.
    File(PathBuf),
    /// These bytes.
    Bytes(Vec<u8>),
}

/// An image to be written.
#[derive(Clone, Debug)]
pub struct Image {
    /// Full name with registry and tag, such as `fairlead.dev/pause:1`.
    pub name: String,
    /// Absolute paths in the image and what is there; all of them may be executed.
    pub files: Vec<(String, Content)>,
    /// What a container of the image starts.
    pub entrypoint: Vec<String>,
    /// Whom it starts as: a number, empty for root.
    pub user: String,
}

impl Image {
    /// An image of one program that a container starts.
    #[must_use]
    pub fn program(name: &str, path: &str, content: Content) -> Self {
        Self {
            name: name.to_owned(),
            files: vec![(path.to_owned(), content)],
            entrypoint: vec![path.to_owned()],
            user: String::new(),
        }
    }

    /// Writes the archive to `path`; its size in bytes.
    ///
    /// # Errors
    /// A file cannot be read or written.
    pub fn write(&self, path: &Path) -> Result<u64> {
        let layer_path = path.with_extension("layer");
        let result = self.write_with(path, &layer_path);
        fs::remove_file(&layer_path).ok();
        result
    }

    fn write_with(&self, path: &Path, layer_path: &Path) -> Result<u64> {
        let mut layer = Archive::create(layer_path)?;
        let mut made = Vec::new();
        let etc = ("/etc/passwd".to_owned(), Content::Bytes(PASSWD.into()));
        let mut files: Vec<&(String, Content)> = self.files.iter().chain([&etc]).collect();
        files.sort_by(|a, b| a.0.cmp(&b.0));
        layer.directory("tmp/", 0o1777)?;
        for (place, content) in files {
            let place = place.trim_start_matches('/');
            for (at, _) in place.match_indices('/') {
                let parent = &place[..=at];
                if !made.contains(&parent) {
                    layer.directory(parent, 0o755)?;
                    made.push(parent);
                }
            }
            let mode = if place == "etc/passwd" { 0o644 } else { 0o755 };
            match content {
                Content::File(file) => layer.file(place, mode, file)?,
                Content::Bytes(bytes) => layer.bytes(place, mode, bytes)?,
            }
        }
        layer.finish()?;
        let digest = sha256(layer_path)?;
        let config = json!({
            "architecture": architecture(),
            "os": "linux",
            "created": EPOCH,
            "config": {
                "Entrypoint": self.entrypoint,
                "User": self.user,
                "WorkingDir": "/",
                "Env": ["PATH=/usr/local/bin:/usr/bin:/bin"],
            },
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
            "history": [{"created": EPOCH, "created_by": "cargo xtask images"}],
        });
        let manifest = json!([{
            "Config": "config.json",
            "RepoTags": [self.name],
            "Layers": ["layer.tar"],
        }]);
        let partial = path.with_extension("partial");
        let mut all = Archive::create(&partial)?;
        all.bytes("config.json", 0o644, config.to_string().as_bytes())?;
        all.file("layer.tar", 0o644, layer_path)?;
        all.bytes("manifest.json", 0o644, manifest.to_string().as_bytes())?;
        all.finish()?;
        fs::rename(&partial, path).with_context(|| path.display().to_string())?;
        Ok(fs::metadata(path)?.len())
    }
}

/// SHA-256 of a file, in hexadecimal.
///
/// # Errors
/// It cannot be read.
pub fn sha256(path: &Path) -> Result<String> {
    let out = system::output(Command::new("sha256sum").arg(path))?;
    let digest = out.split_whitespace().next().unwrap_or_default().trim_start_matches('\\');
    ensure!(digest.len() == 64, "sha256sum {} said {out:?}", path.display());
    Ok(digest.to_owned())
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// A tar archive (POSIX.1-1988 `ustar`) whose entries belong to root and have no time.
struct Archive {
    out: BufWriter<File>,
    path: PathBuf,
}

/// Size of a block of a tar archive.
const BLOCK: usize = 512;

impl Archive {
    fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| path.display().to_string())?;
        Ok(Self { out: BufWriter::with_capacity(1 << 20, file), path: path.to_owned() })
    }

    fn directory(&mut self, name: &str, mode: u32) -> Result<()> {
        self.header(name, mode, 0, b'5')
    }

    fn bytes(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.header(name, mode, content.len() as u64, b'0')?;
        self.out.write_all(content)?;
        self.pad(content.len() as u64)
    }

    fn file(&mut self, name: &str, mode: u32, from: &Path) -> Result<()> {
        let file = File::open(from).with_context(|| from.display().to_string())?;
        let size = file.metadata()?.len();
        self.header(name, mode, size, b'0')?;
        let mut reader = BufReader::with_capacity(1 << 20, file).take(size);
        let copied = std::io::copy(&mut reader, &mut self.out)?;
        ensure!(copied == size, "{} changed while it was read", from.display());
        self.pad(size)
    }

    fn header(&mut self, name: &str, mode: u32, size: u64, kind: u8) -> Result<()> {
        ensure!(name.len() < 100, "{name}: too long a path for an image");
        let mut block = [0_u8; BLOCK];
        let mut put = |at: usize, text: &str| {
            block[at..at + text.len()].copy_from_slice(text.as_bytes());
        };
        put(0, name);
        put(100, &format!("{mode:07o}"));
        put(108, "0000000");
        put(116, "0000000");
        put(124, &format!("{size:011o}"));
        put(136, "00000000000");
        // The sum is taken with blanks where it will stand.
        put(148, "        ");
        put(257, "ustar");
        put(263, "00");
        block[156] = kind;
        let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
        block[148..154].copy_from_slice(format!("{sum:06o}").as_bytes());
        block[154] = 0;
        Ok(self.out.write_all(&block)?)
    }

    fn pad(&mut self, size: u64) -> Result<()> {
        let over = usize::try_from(size % BLOCK as u64)?;
        if over > 0 {
            self.out.write_all(&[0; BLOCK][over..])?;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<()> {
        self.out.write_all(&[0; 2 * BLOCK])?;
        self.out.flush().with_context(|| self.path.display().to_string())
    }
}

/// Name of the image that every pod's sandbox is made of.
pub const PAUSE: &str = "fairlead.dev/pause:1";

/// The sandbox's program: ignores SIGCHLD, so that the kernel reaps what other containers of a
/// shared process namespace leave behind, and waits for ever. Static, 200 bytes, one page of
/// memory for each pod.
///
/// # Errors
/// There is none for this processor.
pub fn pause() -> Result<Image> {
    ensure!(cfg!(target_arch = "x86_64"), "the sandbox's program is written for x86_64 only");
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    #[rustfmt::skip]
    let mut code: Vec<u8> = vec![
        0xb8, 13, 0, 0, 0,                      // mov eax, 13         rt_sigaction(
        0xbf, 17, 0, 0, 0,                      // mov edi, 17           SIGCHLD,
        0x48, 0x8d, 0x35, 23, 0, 0, 0,          // lea rsi, [rip+23]     action below,
        0x31, 0xd2,                             // xor edx, edx          NULL,
        0x41, 0xba, 8, 0, 0, 0,                 // mov r10d, 8           8)
        0x0f, 0x05,                             // syscall
        0xb8, 34, 0, 0, 0,                      // mov eax, 34         pause()
        0x0f, 0x05,                             // syscall
        0xeb, 0xf7,                             // jmp to the mov before
        0x90, 0x90, 0x90, 0x90,                 // to a multiple of eight
    ];
    // struct kernel_sigaction: handler SIG_IGN, no flags, no restorer, empty mask.
    code.extend([1_u64, 0, 0, 0].iter().flat_map(|word| word.to_le_bytes()));
    let mut elf: Vec<u8> = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let size = HEADERS + code.len() as u64;
    elf.extend([2_u16, 62].iter().flat_map(|half| half.to_le_bytes()));
    elf.extend(1_u32.to_le_bytes());
    elf.extend([BASE + HEADERS, 64, 0].iter().flat_map(|word| word.to_le_bytes()));
    elf.extend(0_u32.to_le_bytes());
    elf.extend([64_u16, 56, 1, 64, 0, 0].iter().flat_map(|half| half.to_le_bytes()));
    // One segment to load, readable and executable.
    elf.extend([1_u32, 5].iter().flat_map(|half| half.to_le_bytes()));
    elf.extend([0, BASE, BASE, size, size, 0x1000].iter().flat_map(|word| word.to_le_bytes()));
    elf.extend(code);
    Ok(Image::program(PAUSE, "/pause", Content::Bytes(elf)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("fairlead-image-{}-{name}", std::process::id()))
    }

    #[test]
    fn the_same_image_is_the_same_bytes_and_tar_reads_it() -> Result<()> {
        let (a, b) = (scratch("a.tar"), scratch("b.tar"));
        let image = Image::program("x.dev/y:1", "/usr/bin/y", Content::Bytes(vec![7; 1000]));
        image.write(&a)?;
        image.write(&b)?;
        assert_eq!(fs::read(&a)?, fs::read(&b)?);
        let list = system::output(Command::new("tar").arg("-tf").arg(&a))?;
        assert_eq!(list, "config.json\nlayer.tar\nmanifest.json\n");
        let layer = Command::new("tar").arg("-xOf").arg(&a).arg("layer.tar").output()?.stdout;
        let list = system::output_with(Command::new("tar").arg("-tvf").arg("-"), &layer)?;
        assert!(list.contains("drwxrwxrwt") && list.contains("1000 1970-01-01 00:00 usr/bin/y"));
        fs::remove_file(a)?;
        fs::remove_file(b)?;
        Ok(())
    }

    #[test]
    fn the_sandbox_waits_and_reaps() -> Result<()> {
        let path = scratch("pause");
        let Content::Bytes(elf) = &pause()?.files[0].1 else { panic!("not bytes") };
        fs::write(&path, elf)?;
        system::output(Command::new("chmod").arg("755").arg(&path))?;
        let mut child = Command::new(&path).spawn()?;
        std::thread::sleep(std::time::Duration::from_millis(100));
        let status = fs::read_to_string(format!("/proc/{}/status", child.id()))?;
        let ended = child.try_wait()?;
        child.kill()?;
        child.wait()?;
        fs::remove_file(path)?;
        assert_eq!(ended, None);
        let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        let ignored = u64::from_str_radix(ignored.unwrap_or_default().trim(), 16)?;
        // Bit 16 is signal 17, SIGCHLD.
        assert_ne!(ignored & 1 << 16, 0, "{status}");
        Ok(())
    }
}

//! A program of the workspace as an image: stripped of what only a debugger reads, with the shared
//! libraries that it was linked against, if there are any.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::image::{self, Content, Image};
use crate::system;

/// Registry in the names of images that are made here and come from nowhere.
pub const REGISTRY: &str = "fairlead.dev";

/// Changes when the same program would be packaged otherwise.
const RECIPE: u32 = 1;

/// An archive that was written or found.
#[derive(Clone, Debug)]
pub struct Packaged {
    /// Name of the image in it.
    pub name: String,
    /// The archive.
    pub archive: PathBuf,
    /// Its size in bytes.
    pub size: u64,
    /// Whether it was there already, made of the same program.
    pub cached: bool,
    /// Shared libraries in it; none when the program is static.
    pub libraries: usize,
}

/// Name of the image of a program, in the version of the workspace.
#[must_use]
pub fn image_name(program: &str, registry: &str, tag: &str) -> String {
    format!("{registry}/{program}:{tag}")
}

/// The tag of images unless another is told: the version of the workspace.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Packages the program `binary` as the image `name`, in `to`; nothing is done when that was made
/// of the same program before.
///
/// # Errors
/// The program cannot be read, or a library of it is not found.
pub fn package(binary: &Path, name: &str, to: &Path) -> Result<Packaged> {
    let program = binary.file_name().context("no file name")?.to_string_lossy().into_owned();
    let libraries = libraries(binary)?;
    let stamp = to.with_extension("stamp");
    let mut made_of = format!("{RECIPE} {name} {}", image::sha256(binary)?);
    for library in &libraries {
        made_of += &format!(" {}", image::sha256(library)?);
    }
    let cached = to.is_file() && fs::read_to_string(&stamp).is_ok_and(|was| was == made_of);
    if !cached {
        if let Some(dir) = to.parent() {
            fs::create_dir_all(dir)?;
        }
        let stripped = to.with_extension("stripped");
        strip(binary, &stripped)?;
        let place = format!("/usr/local/bin/{program}");
        let mut image = Image::program(name, &place, Content::File(stripped.clone()));
        let own =
            |library: &PathBuf| (library.display().to_string(), Content::File(library.clone()));
        image.files.extend(libraries.iter().map(own));
        let written = image.write(to);
        fs::remove_file(&stripped).ok();
        written?;
        fs::write(&stamp, made_of)?;
    }
    let size = fs::metadata(to)?.len();
    let (name, archive) = (name.to_owned(), to.to_owned());
    Ok(Packaged { name, archive, size, cached, libraries: libraries.len() })
}

/// Names of functions stay, for backtraces; line tables go.
fn strip(from: &Path, to: &Path) -> Result<()> {
    if system::find("strip").is_some() {
        system::output(Command::new("strip").arg("--strip-debug").arg("-o").arg(to).arg(from))?;
    } else {
        fs::copy(from, to).with_context(|| from.display().to_string())?;
    }
    Ok(())
}

/// Shared libraries of a program, where the loader finds them.
fn libraries(binary: &Path) -> Result<Vec<PathBuf>> {
    let done = Command::new("ldd").arg(binary).output().context("ldd")?;
    let said = [done.stdout, done.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    if said.contains("not a dynamic executable") || said.contains("statically linked") {
        return Ok(Vec::new());
    }
    ensure!(done.status.success(), "ldd {}: {}", binary.display(), said.trim());
    read_ldd(&said)
}

/// `name => path (address)`, or `path (address)` for the loader; the kernel's own has no path.
fn read_ldd(said: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for line in said.lines() {
        ensure!(!line.contains("not found"), "{}", line.trim());
        let path = line.split_whitespace().find(|word| word.starts_with('/'));
        found.extend(path.map(PathBuf::from));
    }
    found.sort();
    found.dedup();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read() -> Result<()> {
        let said = "\tlinux-vdso.so.1 (0x00007ffc)\n\
                    \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let found = read_ldd(said)?;
        assert_eq!(found.len(), 2);
        assert_eq!(found[0], Path::new("/lib/x86_64-linux-gnu/libc.so.6"));
        assert!(read_ldd("\tlibx.so => not found\n").is_err());
        Ok(())
    }
}

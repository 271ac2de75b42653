//! Unix sockets at a path of ours: they come to be in place of an earlier one without a moment in
//! which there is none, and go with their owner unless another has taken the path.

use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

/// A listener that is root's alone, and its file. Dropping it removes the file, if that is still
/// its own.
#[derive(Debug)]
pub(crate) struct OwnSocket {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

impl OwnSocket {
    /// Listens at `path`, in place of what is there. Needs a tokio runtime around it.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub(crate) fn bind(path: &Path) -> io::Result<Self> {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        // Made under another name: whoever comes meets the earlier one or this one.
        let mut making = path.as_os_str().to_owned();
        making.push(".new");
        let making = PathBuf::from(making);
        match std::fs::remove_file(&making) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&making)?;
        std::fs::set_permissions(&making, std::fs::Permissions::from_mode(0o600))?;
        let inode = std::fs::metadata(&making)?.ino();
        std::fs::rename(&making, path)?;
        Ok(Self { listener, path: path.to_owned(), inode })
    }

    /// The listener.
    pub(crate) fn listener(&self) -> &UnixListener {
        &self.listener
    }
}

impl Drop for OwnSocket {
    fn drop(&mut self) {
        if std::fs::metadata(&self.path).is_ok_and(|file| file.ino() == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_later_one_takes_the_path_and_keeps_it() {
        let dir = std::env::temp_dir().join(format!("fairlead-socket-{}", std::process::id()));
        let path = dir.join("s.sock");
        let first = OwnSocket::bind(&path).unwrap();
        let second = OwnSocket::bind(&path).unwrap();
        drop(first);
        let client = tokio::net::UnixStream::connect(&path).await.unwrap();
        second.listener().accept().await.unwrap();
        drop((client, second));
        assert!(!path.exists());
        std::fs::remove_dir_all(dir).unwrap();
    }
}

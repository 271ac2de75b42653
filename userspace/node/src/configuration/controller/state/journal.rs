//! The state file: opened, appended to, copied.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fairlead_wire::config::Resource;
use prost::Message as _;

use super::format::{
    self, AROUND, Contents, Digest, Identity, Kind, MAGIC, Place, StateError, chained, commit,
    record,
};

/// Name of the file in the state directory.
const FILE: &str = "configuration.state";
/// The file is copied without what is outdated when it is at least so long…
const COMPACT_FROM: u64 = 4 << 20;
/// …and so many times the length of what counts.
const COMPACT_FACTOR: u64 = 3;
/// No file gets longer.
const MAX_FILE: u64 = 2 << 30;

/// The state file, open.
pub(crate) struct Journal {
    path: PathBuf,
    whose: Identity,
    file: File,
    contents: Contents,
    /// What is behind the last commit: digests, records, bytes.
    chain: Digest,
    records: u32,
    end: u64,
    /// Changes of the open transaction.
    staged: Vec<(Arc<PathBuf>, Option<Place>)>,
    staged_trust: Option<Vec<u8>>,
    as_of: SystemTime,
    /// A new file that takes the place of an older one with its first commit.
    unborn: bool,
    /// Held until another daemon is to have the directory.
    lock: Option<File>,
}

fn micros(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// Makes the directory of an owner alone, and takes it for this daemon.
pub(crate) fn prepare(dir: &Path) -> io::Result<File> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(dir.join(".lock"))?;
    lock.try_lock().map_err(|_| {
        io::Error::new(io::ErrorKind::ResourceBusy, "another fairlead-node uses this directory")
    })?;
    Ok(lock)
}

impl Journal {
    /// Opens the state of `whose` in `dir`. What is there and cannot be used is put aside, as
    /// `configuration.state.refused`, and the reason comes back with an empty journal.
    ///
    /// # Errors
    /// The directory cannot be written to, or belongs to another daemon at this moment.
    pub(crate) fn open(dir: &Path, whose: Identity) -> io::Result<(Self, Option<StateError>)> {
        let lock = prepare(dir)?;
        let path = dir.join(FILE);
        match open_existing(&path, &whose) {
            Ok((file, contents)) => {
                let committed = SystemTime::UNIX_EPOCH + Duration::from_micros(contents.at);
                // The time of a file to which more was written than was committed says nothing.
                let touched = file.metadata()?.modified().ok().filter(|_| !contents.torn);
                let mut journal = Self {
                    as_of: touched.map_or(committed, |at| at.max(committed)),
                    path,
                    whose,
                    chain: contents.chain,
                    end: contents.end,
                    contents,
                    file,
                    records: 0,
                    staged: Vec::new(),
                    staged_trust: None,
                    unborn: false,
                    lock: Some(lock),
                };
                journal.rollback()?;
                Ok((journal, None))
            }
            Err(error) => {
                let new =
                    matches!(&error, StateError::Io(e) if e.kind() == io::ErrorKind::NotFound);
                if !new {
                    let mut aside = path.clone().into_os_string();
                    aside.push(".refused");
                    fs::rename(&path, aside)?;
                }
                let (file, end, chain) = create(&path.with_extension("new"), &whose)?;
                let journal = Self {
                    as_of: SystemTime::UNIX_EPOCH,
                    path,
                    whose,
                    file,
                    contents: Contents::default(),
                    chain,
                    records: 1,
                    end,
                    staged: Vec::new(),
                    staged_trust: None,
                    unborn: true,
                    lock: Some(lock),
                };
                Ok((journal, (!new).then_some(error)))
            }
        }
    }

    /// What is committed.
    pub(crate) fn contents(&self) -> &Contents {
        &self.contents
    }

    /// When the node last knew that what is committed is current: at the last commit, or at a
    /// later [`Journal::touch`].
    pub(crate) fn as_of(&self) -> SystemTime {
        self.as_of.min(SystemTime::now())
    }

    /// An object that is committed.
    ///
    /// # Errors
    /// It cannot be read, or is not what it was.
    pub(crate) fn resource(&self, place: &Place) -> Result<Resource, StateError> {
        let bytes = self.bytes(place)?;
        let read = format::next(&mut &bytes[..], place.offset)?;
        let damaged =
            || StateError::Damaged { at: place.offset, what: "an object has changed".to_owned() };
        let record = read.filter(|r| r.kind == Kind::Upsert).ok_or_else(damaged)?;
        Resource::decode(&record.payload[..]).map_err(|_| damaged())
    }

    fn bytes(&self, place: &Place) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; place.length as usize];
        self.file.read_exact_at(&mut bytes, place.offset)?;
        Ok(bytes)
    }

    /// Adds an object to the transaction.
    ///
    /// # Errors
    /// It cannot be written; the transaction has to be rolled back.
    pub(crate) fn upsert(&mut self, path: &Arc<PathBuf>, resource: &Resource) -> io::Result<()> {
        let payload = resource.encode_to_vec();
        let place = Place {
            offset: self.end,
            length: u32::try_from(payload.len() + AROUND).unwrap_or(u32::MAX),
            bytes: u32::try_from(resource.json.len()).unwrap_or(u32::MAX),
        };
        self.append(Kind::Upsert, &payload)?;
        self.staged.push((Arc::clone(path), Some(place)));
        Ok(())
    }

    /// Adds a removal to the transaction.
    ///
    /// # Errors
    /// As [`Journal::upsert`].
    pub(crate) fn remove(
        &mut self,
        path: &Arc<PathBuf>,
        key: &fairlead_wire::config::Key,
    ) -> io::Result<()> {
        self.append(Kind::Remove, &key.encode_to_vec())?;
        self.staged.push((Arc::clone(path), None));
        Ok(())
    }

    /// Adds a trust bundle to the transaction.
    ///
    /// # Errors
    /// As [`Journal::upsert`].
    pub(crate) fn trust(&mut self, pem: Vec<u8>) -> io::Result<()> {
        self.append(Kind::Trust, &pem)?;
        self.staged_trust = Some(pem);
        Ok(())
    }

    fn append(&mut self, kind: Kind, payload: &[u8]) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(payload.len() + AROUND);
        let digest = record(kind, payload, &mut bytes);
        if self.end + bytes.len() as u64 > MAX_FILE {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                "the state has become too large",
            ));
        }
        self.file.write_all(&bytes)?;
        self.end += bytes.len() as u64;
        if kind != Kind::Commit {
            self.chain = chained(&self.chain, &digest);
            self.records = self.records.saturating_add(1);
        }
        Ok(())
    }

    /// Ends the transaction: from here on it counts, also after `kill -9`. It survives a loss of
    /// power from the next [`Journal::sync`] on.
    ///
    /// # Errors
    /// As [`Journal::upsert`].
    pub(crate) fn commit(&mut self) -> io::Result<()> {
        self.as_of = SystemTime::now();
        let now = micros(self.as_of);
        let payload = commit(now, self.records, &self.chain);
        self.append(Kind::Commit, &payload)?;
        if self.unborn {
            self.sync()?;
            take_place(&self.path.with_extension("new"), &self.path)?;
            self.unborn = false;
        }
        for (path, place) in self.staged.drain(..) {
            match place {
                Some(place) => self.contents.objects.insert(path, place),
                None => self.contents.objects.remove(&path),
            };
        }
        if let Some(trust) = self.staged_trust.take() {
            self.contents.trust = Some(trust);
        }
        self.contents.at = now;
        self.contents.end = self.end;
        self.contents.chain = self.chain;
        self.contents.torn = false;
        self.records = 0;
        let live = self.contents.live_bytes();
        if self.end > COMPACT_FROM && self.end > COMPACT_FACTOR * live {
            self.compact()?;
        }
        Ok(())
    }

    /// Takes the open transaction back.
    ///
    /// # Errors
    /// The file cannot be cut.
    pub(crate) fn rollback(&mut self) -> io::Result<()> {
        self.staged.clear();
        self.staged_trust = None;
        if self.contents.end == 0 {
            // Nothing was ever committed.
            return self.clear();
        }
        self.file.set_len(self.contents.end)?;
        self.file.seek(SeekFrom::Start(self.contents.end))?;
        self.file.set_modified(self.as_of)?;
        self.contents.torn = false;
        self.end = self.contents.end;
        self.chain = self.contents.chain;
        self.records = 0;
        Ok(())
    }

    /// Begins anew; what is there stays until the first commit.
    ///
    /// # Errors
    /// The file cannot be made anew.
    pub(crate) fn clear(&mut self) -> io::Result<()> {
        let (file, end, chain) = create(&self.path.with_extension("new"), &self.whose)?;
        self.file = file;
        self.unborn = true;
        (self.end, self.chain, self.records) = (end, chain, 1);
        self.contents = Contents::default();
        self.staged.clear();
        self.staged_trust = None;
        Ok(())
    }

    /// Has it survive a loss of power.
    ///
    /// # Errors
    /// The disk.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Leaves the directory to another daemon: nothing may be written after this.
    ///
    /// # Errors
    /// What was begun cannot be taken back; the directory is left all the same.
    pub(crate) fn let_go(&mut self) -> io::Result<()> {
        let result = self.rollback().and_then(|()| self.sync());
        self.lock = None;
        result
    }

    /// Takes the directory again. Another may have written to it: everything has to begin anew.
    ///
    /// # Errors
    /// It belongs to another.
    pub(crate) fn take_up(&mut self) -> io::Result<()> {
        let dir = self.path.parent().ok_or(io::ErrorKind::NotFound)?;
        // Kept once it can be written to: who asks again must not meet its own lock.
        let lock = prepare(dir)?;
        self.clear()?;
        self.lock = Some(lock);
        Ok(())
    }

    /// Says that what is committed is current now.
    ///
    /// # Errors
    /// The disk.
    pub(crate) fn touch(&mut self, at: SystemTime) -> io::Result<()> {
        if self.unborn || self.records > 0 {
            return Ok(());
        }
        self.as_of = at;
        self.file.set_modified(at)
    }

    /// Copies what counts to a new file, which takes the place of this one.
    fn compact(&mut self) -> io::Result<()> {
        let before = self.end;
        let temporary = self.path.with_extension("new");
        let (file, end, chain) = create(&temporary, &self.whose)?;
        let mut copy = Self {
            as_of: self.as_of,
            path: temporary,
            whose: self.whose.clone(),
            file,
            contents: Contents::default(),
            chain,
            records: 1,
            end,
            staged: Vec::new(),
            staged_trust: None,
            unborn: false,
            lock: None,
        };
        let mut places: Vec<_> = self.contents.objects.iter().collect();
        places.sort_by_key(|(_, place)| place.offset);
        for (path, place) in places {
            // Read as at a start: what has been damaged must not be copied under a new checksum.
            let resource = self.resource(place).map_err(io::Error::other)?;
            copy.upsert(path, &resource)?;
        }
        if let Some(trust) = &self.contents.trust {
            copy.trust(trust.clone())?;
        }
        let payload = commit(self.contents.at, copy.records, &copy.chain);
        copy.append(Kind::Commit, &payload)?;
        copy.sync()?;
        take_place(&copy.path, &self.path)?;
        let mut objects = std::mem::take(&mut self.contents.objects);
        objects.clear();
        for (path, place) in copy.staged.drain(..) {
            if let Some(place) = place {
                objects.insert(path, place);
            }
        }
        self.contents.objects = objects;
        self.contents.end = copy.end;
        self.contents.chain = copy.chain;
        self.file = copy.file.try_clone()?;
        self.file.set_modified(self.as_of)?;
        self.end = copy.end;
        self.chain = copy.chain;
        self.records = 0;
        tracing::debug!(before, after = self.end, "state file copied without what is outdated");
        Ok(())
    }
}

fn open_existing(path: &Path, whose: &Identity) -> Result<(File, Contents), StateError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or(0))
        .open(path)?;
    let metadata = file.metadata()?;
    let foreign = |what, found: String| Err(StateError::Foreign { what, found });
    if !metadata.is_file() {
        return foreign("kind", "not a file".into());
    }
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return foreign("owner", format!("user {}", metadata.uid()));
    }
    if metadata.mode() & 0o077 != 0 {
        return foreign(
            "mode",
            format!("{:o}: others may read or write it", metadata.mode() & 0o777),
        );
    }
    let contents = format::read(&mut BufReader::with_capacity(1 << 18, &file), whose)?;
    Ok((file, contents))
}

fn take_place(new: &Path, old: &Path) -> io::Result<()> {
    fs::rename(new, old)?;
    match old.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

fn create(path: &Path, whose: &Identity) -> io::Result<(File, u64, Digest)> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file =
        OpenOptions::new().create_new(true).read(true).write(true).mode(0o600).open(path)?;
    let mut bytes = MAGIC.to_vec();
    let header = serde_json::to_vec(whose).map_err(io::Error::other)?;
    let digest = record(Kind::Header, &header, &mut bytes);
    file.write_all(&bytes)?;
    Ok((file, bytes.len() as u64, chained(&Digest::default(), &digest)))
}

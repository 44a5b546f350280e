//! [`Staging`]: files that appear in a folder all at once, and may be finished by a later process.

use std::{
    fs::{self, File, TryLockError},
    io::Write,
    path::{Path, PathBuf},
};

use model_format::Error as FormatError;

use crate::{
    Error, Result,
    journal::{Finished, Journal},
};

const PREFIX: &str = ".weight-convert-";
const SUFFIX: &str = ".tmp";
/// Held by the process that writes to a folder.
const LOCK: &str = "lock";

/// Files that make a folder look whole. They are renamed last, in this order, and those of an earlier conversion are
/// removed before anything else is.
const MARKERS: [&str; 4] = ["tensor-cache-b16.json", "ndarray-cache.json", "tensor-cache.json", "mlc-chat-config.json"];

/// A folder with files being written under temporary names. Dropped before [`Staging::commit`], it leaves nothing behind,
/// unless it is to be [kept](Staging::keep) for the next process.
pub(crate) struct Staging {
    folder: PathBuf,
    /// The outermost folder that had to be made.
    made: Option<PathBuf>,
    files: Vec<String>,
    /// What is finished, where that is to outlive the process.
    journal: Option<Journal>,
    lock: Option<File>,
    keep: bool,
}

impl Staging {
    /// Makes `folder` where it is not there.
    pub(crate) fn new(folder: &Path) -> Result<Staging> {
        let made = folder.ancestors().take_while(|f| !f.as_os_str().is_empty() && !f.exists()).last();
        fs::create_dir_all(folder).map_err(|e| io("create", folder, e))?;
        let made = made.map(Path::to_path_buf);
        let mut staging =
            Staging { folder: folder.into(), made, files: Vec::new(), journal: None, lock: None, keep: false };
        let path = staging.temporary(LOCK);
        let lock = File::create(&path).map_err(|e| io("create", &path, e))?;
        // Another error is that of a file system without locks, where nothing is known of others.
        if let Err(TryLockError::WouldBlock) = lock.try_lock() {
            // It is the other's to remove.
            staging.made = None;
            return Err(Error::InUse { folder: folder.display().to_string() });
        }
        staging.lock = Some(lock);
        Ok(staging)
    }

    /// The same, to go on with what a process that was ended has left, if it did the same work: `fingerprint` tells. What
    /// another work has left is cleared away. The second result is the shards that are finished.
    pub(crate) fn resumed(folder: &Path, fingerprint: &str) -> Result<(Staging, Vec<Finished>)> {
        let mut staging = Staging::new(folder)?;
        let path = staging.temporary(Journal::NAME);
        let mut finished = Journal::read(&path, fingerprint);
        finished.retain(|shard| staging.is_there(shard));
        let kept: Vec<String> = finished.iter().map(|shard| staging.temporary_name(&shard.name)).collect();
        for entry in fs::read_dir(folder).map_err(|e| io("list", folder, e))? {
            let entry = entry.map_err(|e| io("list", folder, e))?;
            let name = entry.file_name();
            let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX)) else {
                continue;
            };
            if !kept.iter().any(|kept| kept == name) && name != staging.temporary_name(LOCK) {
                fs::remove_file(entry.path()).map_err(|e| io("clear", &entry.path(), e))?;
            }
        }
        staging.files = finished.iter().map(|shard| shard.name.clone()).collect();
        staging.journal = Some(Journal::begin(&path, fingerprint, &finished).map_err(|e| io("write", &path, e))?);
        Ok((staging, finished))
    }

    /// Whether a finished shard is still what it was. One that has its name already, because the process was ended while
    /// files were being renamed, gets its temporary name again.
    fn is_there(&self, shard: &Finished) -> bool {
        let (temporary, path) = (self.temporary(&shard.name), self.folder.join(&shard.name));
        let whole = MARKERS.iter().any(|marker| self.folder.join(marker).exists());
        if !temporary.exists() && !whole && shard.is(&path) {
            return fs::rename(&path, &temporary).is_ok();
        }
        shard.is(&temporary)
    }

    fn temporary_name(&self, name: &str) -> String {
        format!("{PREFIX}{name}{SUFFIX}")
    }

    fn temporary(&self, name: &str) -> PathBuf {
        self.folder.join(self.temporary_name(name))
    }

    /// Begins a file that will be called `name`.
    pub(crate) fn create(&mut self, name: &str) -> Result<StagedFile> {
        let path = self.folder.join(name);
        let file = File::create(self.temporary(name)).map_err(|e| io("create", &path, e))?;
        self.files.push(name.to_owned());
        Ok(StagedFile { file, path })
    }

    /// A whole small file.
    pub(crate) fn write(&mut self, name: &str, content: &[u8]) -> Result<()> {
        let mut file = self.create(name)?;
        file.write(content)?;
        file.finish()
    }

    /// Notes that a shard is complete and on the disk, for whoever goes on after this process.
    pub(crate) fn finished(&mut self, shard: &Finished) -> Result<()> {
        match &mut self.journal {
            Some(journal) => Ok(journal.add(shard).map_err(|e| io("write", &self.folder, e))?),
            None => Ok(()),
        }
    }

    /// Leaves what is finished to the next process.
    pub(crate) fn keep(&mut self) {
        self.keep = self.journal.as_ref().is_some_and(|journal| journal.len() > 0);
    }

    /// Gives all files their names, the markers last. Shards of an earlier conversion that are not replaced are removed
    /// when this one has shards.
    pub(crate) fn commit(mut self) -> Result<()> {
        let mut files = std::mem::take(&mut self.files);
        files.sort_by_key(|name| MARKERS.iter().position(|marker| marker == name).map_or(0, |i| i + 1));
        // From here on the folder is no longer what it was, and what is finished stays.
        self.made = None;
        self.keep = true;
        let replaces_weights = files.iter().any(|name| is_shard(name));
        for marker in MARKERS {
            if files.iter().any(|name| name == marker) || (replaces_weights && marker != MARKERS[3]) {
                remove(&self.folder.join(marker))?;
            }
        }
        if replaces_weights {
            let entries = fs::read_dir(&self.folder).map_err(|e| io("list", &self.folder, e))?;
            for entry in entries {
                let entry = entry.map_err(|e| io("list", &self.folder, e))?;
                if entry.file_name().to_str().is_some_and(is_shard) {
                    remove(&entry.path())?;
                }
            }
        }
        for name in files {
            let path = self.folder.join(&name);
            fs::rename(self.temporary(&name), &path).map_err(|e| io("write", &path, e))?;
        }
        self.keep = false;
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let had_lock = self.lock.take().is_some();
        // There is nobody to tell where something cannot be removed; its name says what it is.
        let clear = |name: &str| {
            let _ = fs::remove_file(self.temporary(name));
        };
        if !self.keep {
            self.files.iter().for_each(|name| clear(name));
            clear(Journal::NAME);
        }
        if had_lock {
            clear(LOCK);
        }
        if let Some(made) = self.made.as_ref().filter(|_| !self.keep) {
            // Only what is empty goes.
            let mut folder = self.folder.as_path();
            while fs::remove_dir(folder).is_ok() && folder != made {
                let Some(parent) = folder.parent() else { break };
                folder = parent;
            }
        }
    }
}

/// A file under its temporary name.
pub(crate) struct StagedFile {
    file: File,
    /// What it will be called, for messages.
    path: PathBuf,
}

impl StagedFile {
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| io("write", &self.path, e).into())
    }

    /// The content is complete and on the disk.
    pub(crate) fn finish(self) -> Result<()> {
        self.file.sync_all().map_err(|e| io("write", &self.path, e).into())
    }
}

fn is_shard(name: &str) -> bool {
    name.starts_with("params_shard_") && name.ends_with(".bin")
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(io("replace", path, e).into()),
        _ => Ok(()),
    }
}

fn io(action: &'static str, path: &Path, source: std::io::Error) -> FormatError {
    FormatError::Io { action, path: path.into(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::sum_of_file;

    const SHARDS: [&str; 3] = ["params_shard_0.bin", "params_shard_1.bin", "params_shard_2.bin"];

    /// A process that is ended: what it holds is closed, nothing is cleared.
    fn end(mut staging: Staging) {
        staging.lock = None;
        std::mem::forget(staging);
    }

    /// Stages three shards and an index over a folder that holds an older model.
    fn staged(folder: &Path) -> Staging {
        for name in ["params_shard_0.bin", "params_shard_7.bin", "tensor-cache.json"] {
            fs::write(folder.join(name), "old").unwrap();
        }
        let (mut staging, finished) = Staging::resumed(folder, "work").unwrap();
        assert!(finished.is_empty());
        for name in SHARDS {
            staging.write(name, name.as_bytes()).unwrap();
            let md5sum = sum_of_file(&staging.temporary(name)).unwrap();
            staging.finished(&Finished { name: name.into(), nbytes: name.len() as u64, md5sum }).unwrap();
        }
        staging.write("tensor-cache.json", b"new").unwrap();
        staging
    }

    /// A commit is a row of removals and renamings; wherever it ends, the next one finishes it.
    #[test]
    fn a_commit_that_was_ended_is_taken_up_again() {
        for renamed in 0..=SHARDS.len() {
            let folder = tempfile::tempdir().unwrap();
            let staging = staged(folder.path());
            fs::remove_file(folder.path().join("tensor-cache.json")).unwrap();
            for name in ["params_shard_0.bin", "params_shard_7.bin"] {
                fs::remove_file(folder.path().join(name)).unwrap();
            }
            for name in &SHARDS[..renamed] {
                fs::rename(staging.temporary(name), folder.path().join(name)).unwrap();
            }
            end(staging);

            let (mut staging, finished) = Staging::resumed(folder.path(), "work").unwrap();
            assert_eq!(finished.len(), 3, "{renamed}");
            staging.write("tensor-cache.json", b"new").unwrap();
            staging.commit().unwrap();
            let mut names: Vec<_> = fs::read_dir(folder.path())
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            assert_eq!(names, [&SHARDS[..], &["tensor-cache.json"]].concat(), "{renamed}");
            for name in SHARDS {
                assert_eq!(fs::read(folder.path().join(name)).unwrap(), name.as_bytes());
            }
        }
    }

    /// An older model that is still whole is not taken apart for its shards.
    #[test]
    fn a_whole_model_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let staging = staged(folder.path());
        for name in SHARDS {
            fs::rename(staging.temporary(name), folder.path().join(name)).unwrap();
        }
        end(staging);
        let (staging, finished) = Staging::resumed(folder.path(), "work").unwrap();
        assert!(finished.is_empty());
        drop(staging);
        assert_eq!(fs::read(folder.path().join("tensor-cache.json")).unwrap(), b"old");
        assert_eq!(fs::read(folder.path().join(SHARDS[1])).unwrap(), SHARDS[1].as_bytes());
    }
}

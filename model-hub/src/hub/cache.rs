//! The hub's cache on disk, shared with the hub's other tools.
//!
//! A repository is a folder `models--org--name/` with `blobs/`, `snapshots/COMMIT/` and `refs/`. The crate hf-hub
//! determines the paths.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use hf_hub::Repo;

use super::{is_hex, read_small};
use crate::error::io;
use crate::save::write_whole;
use crate::{HubConfig, Progress, Result};

/// The part of the cache that belongs to one repository.
pub(super) struct Cache {
    root: PathBuf,
    /// `models--org--name`.
    folder_name: String,
    repo: hf_hub::CacheRepo,
}

impl Cache {
    pub fn new(config: &HubConfig, repo: Repo) -> Cache {
        let root = config.cache_dir.clone();
        Cache { folder_name: repo.folder_name(), repo: hf_hub::Cache::new(root.clone()).repo(repo), root }
    }

    /// Folder of the whole cache.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Folder of a commit's files.
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.repo.pointer_path(commit)
    }

    /// Path of the content with this etag.
    pub fn blob(&self, etag: &str) -> PathBuf {
        self.repo.blob_path(etag)
    }

    /// Path of incomplete content with this etag, named as by the hub's Python client.
    pub fn incomplete(&self, etag: &str) -> PathBuf {
        self.repo.blob_path(&format!("{etag}.incomplete"))
    }

    /// The commit of a revision at its last complete download.
    pub fn read_ref(&self, revision: &str) -> Option<String> {
        read_small(&self.ref_path(revision)).filter(|commit| is_hex(commit, 40))
    }

    /// Stores the commit of a revision.
    pub fn write_ref(&self, revision: &str, commit: &str) -> Result<()> {
        if revision == commit || self.read_ref(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.ref_path(revision);
        let folder = path.parent().expect("a ref path has a parent: `refs`");
        let name = path.file_name().expect("a revision ends in a name").to_string_lossy();
        fs::create_dir_all(folder).map_err(io("create", folder))?;
        write_whole(folder, &name, commit.as_bytes())
    }

    fn ref_path(&self, revision: &str) -> PathBuf {
        self.root.join(&self.folder_name).join("refs").join(revision)
    }

    /// Locks this content against other threads and processes until the returned file is dropped.
    pub fn lock(&self, etag: &str, progress: &mut dyn Progress) -> Result<File> {
        let folder = self.root.join(".locks").join(&self.folder_name);
        fs::create_dir_all(&folder).map_err(io("create", &folder))?;
        let path = folder.join(format!("{etag}.lock"));
        let file = File::options().create(true).append(true).open(&path).map_err(io("create", &path))?;
        if file.try_lock().is_err() {
            progress.message("waiting: another process is downloading the same file");
            file.lock().map_err(io("lock", &path))?;
        }
        Ok(file)
    }

    /// Links a blob into a snapshot under its file's name.
    pub fn link(&self, etag: &str, commit: &str, file: &str) -> Result<()> {
        let pointer = self.snapshot(commit).join(file);
        let folder = pointer.parent().expect("a pointer path has a parent: the snapshot");
        fs::create_dir_all(folder).map_err(io("create", folder))?;
        // Remove a dangling link, which remains after its blob was deleted.
        if pointer.symlink_metadata().is_ok() && !pointer.exists() {
            fs::remove_file(&pointer).map_err(io("replace", &pointer))?;
        }
        match link(&self.blob(etag), etag, file.split('/').count(), &pointer) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
            other => other.map_err(io("create", &pointer)),
        }
    }
}

/// Creates a relative link, so that the cache can be moved. The folder of `pointer` is `depth` levels below
/// `snapshots/`.
#[cfg(unix)]
fn link(_: &Path, etag: &str, depth: usize, pointer: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(Path::new(&"../".repeat(depth + 1)).join("blobs").join(etag), pointer)
}

/// Creates a hard link or a copy: on Windows, symbolic links need a privilege.
#[cfg(not(unix))]
fn link(blob: &Path, _: &str, _: usize, pointer: &Path) -> std::io::Result<()> {
    fs::hard_link(blob, pointer).or_else(|_| fs::copy(blob, pointer).map(drop))
}

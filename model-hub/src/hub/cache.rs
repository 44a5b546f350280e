//! The hub's cache on disk: `models--org--name/` with `blobs/`, `snapshots/COMMIT/` and `refs/`, shared with the hub's
//! other tools. Paths are hf-hub's.

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

    /// The whole cache.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the files of a commit appear.
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.repo.pointer_path(commit)
    }

    /// Where the content with this etag is kept.
    pub fn blob(&self, etag: &str) -> PathBuf {
        self.repo.blob_path(etag)
    }

    /// Where it is while it is incomplete, under the name that the hub's Python client gives it.
    pub fn incomplete(&self, etag: &str) -> PathBuf {
        self.repo.blob_path(&format!("{etag}.incomplete"))
    }

    /// The commit that a revision stood for when it was last downloaded.
    pub fn read_ref(&self, revision: &str) -> Option<String> {
        read_small(&self.ref_path(revision)).filter(|commit| is_hex(commit, 40))
    }

    /// Remembers what a revision stands for.
    pub fn write_ref(&self, revision: &str, commit: &str) -> Result<()> {
        if revision == commit || self.read_ref(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.ref_path(revision);
        let folder = path.parent().expect("it is below `refs`");
        let name = path.file_name().expect("a revision ends in a name").to_string_lossy();
        fs::create_dir_all(folder).map_err(io("create", folder))?;
        write_whole(folder, &name, commit.as_bytes())
    }

    fn ref_path(&self, revision: &str) -> PathBuf {
        self.root.join(&self.folder_name).join("refs").join(revision)
    }

    /// Keeps others, processes included, from downloading the same content until the result is dropped.
    pub fn lock(&self, etag: &str, progress: &mut dyn Progress) -> Result<File> {
        let folder = self.root.join(".locks").join(&self.folder_name);
        fs::create_dir_all(&folder).map_err(io("create", &folder))?;
        let path = folder.join(format!("{etag}.lock"));
        let file = File::options().create(true).append(true).open(&path).map_err(io("create", &path))?;
        if file.try_lock().is_err() {
            progress.message("waiting for another process that downloads the same file");
            file.lock().map_err(io("lock", &path))?;
        }
        Ok(file)
    }

    /// Makes a blob appear in a snapshot under its file's name.
    pub fn link(&self, etag: &str, commit: &str, file: &str) -> Result<()> {
        let pointer = self.snapshot(commit).join(file);
        let folder = pointer.parent().expect("it is below a snapshot");
        fs::create_dir_all(folder).map_err(io("create", folder))?;
        // A link that leads nowhere is left when blobs were deleted.
        if pointer.symlink_metadata().is_ok() && !pointer.exists() {
            fs::remove_file(&pointer).map_err(io("replace", &pointer))?;
        }
        match link(&self.blob(etag), etag, file.split('/').count(), &pointer) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
            other => other.map_err(io("create", &pointer)),
        }
    }
}

/// Relative, so that the cache can be moved: from `depth` levels below the folder of snapshots.
#[cfg(unix)]
fn link(_: &Path, etag: &str, depth: usize, pointer: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(Path::new(&"../".repeat(depth + 1)).join("blobs").join(etag), pointer)
}

/// Symbolic links need a privilege elsewhere.
#[cfg(not(unix))]
fn link(blob: &Path, _: &str, _: usize, pointer: &Path) -> std::io::Result<()> {
    fs::hard_link(blob, pointer).or_else(|_| fs::copy(blob, pointer).map(drop))
}

//! [`ModelFiles`]: where the engine's files come from, be it a folder or the network.

use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// The named files of one model. Reading is asynchronous because in a browser it is.
#[expect(async_fn_in_trait, reason = "the engine owns no thread, so no Send bound is wanted")]
pub trait ModelFiles {
    /// The whole content of a file. Names are single components, such as `params_shard_0.bin`.
    async fn read(&self, name: &str) -> Result<Vec<u8>>;
    /// Whether the file is there.
    async fn exists(&self, name: &str) -> bool;
    /// What to call this place in messages.
    fn location(&self) -> String;
}

/// The files of a folder.
#[derive(Debug, Clone)]
pub struct DirFiles {
    folder: PathBuf,
}

impl DirFiles {
    /// The files of `folder`.
    pub fn new(folder: impl Into<PathBuf>) -> DirFiles {
        DirFiles { folder: folder.into() }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

impl ModelFiles for DirFiles {
    async fn read(&self, name: &str) -> Result<Vec<u8>> {
        check_file_name(&self.location(), name)?;
        let path = self.folder.join(name);
        std::fs::read(&path).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => Error::MissingFile { file: name.into(), folder: self.location() },
            _ => Error::Io { action: "read", path, source },
        })
    }

    async fn exists(&self, name: &str) -> bool {
        check_file_name("", name).is_ok() && self.folder.join(name).is_file()
    }

    fn location(&self) -> String {
        self.folder.display().to_string()
    }
}

/// Refuses a file name from an index that would leave the model's folder. `index` names the file it stands in.
pub fn check_file_name(index: &str, name: &str) -> Result<()> {
    let plain = !name.is_empty()
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        && !name.starts_with('.');
    if plain {
        return Ok(());
    }
    Err(Error::Malformed { file: index.into(), reason: format!("{name:?} is not the name of a file beside it") })
}

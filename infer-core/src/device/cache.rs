//! [`DeviceCache`]: storage for measured facts about devices (small JSON files), and for the driver's compiled pipelines.
//!
//! Everything in it can be measured or compiled again. A missing or damaged file therefore counts as empty, and a failed
//! write is not an error.

use std::{fmt::Debug, path::PathBuf, sync::Arc};

use serde_json::{Map, Value};

/// Named files, each read and written as a whole. Implement it where no file system exists, for example in a browser.
pub trait DeviceCache: Debug + Send + Sync {
    /// The content of a file, or `None` if it does not exist.
    fn read(&self, name: &str) -> Option<Vec<u8>>;
    /// Writes a file, completely or not at all. Returns true on success.
    fn write(&self, name: &str, content: &[u8]) -> bool;
}

/// A [`DeviceCache`] in a folder. The first write creates the folder.
#[derive(Debug)]
pub struct CacheFolder(PathBuf);

impl CacheFolder {
    /// The cache in `folder`.
    pub fn at(folder: impl Into<PathBuf>) -> Arc<dyn DeviceCache> {
        Arc::new(CacheFolder(folder.into()))
    }
}

impl DeviceCache for CacheFolder {
    fn read(&self, name: &str) -> Option<Vec<u8>> {
        std::fs::read(self.0.join(name)).ok()
    }

    fn write(&self, name: &str, content: &[u8]) -> bool {
        let temporary = self.0.join(format!(".{name}.{}.tmp", std::process::id()));
        let write = || {
            std::fs::create_dir_all(&self.0)?;
            std::fs::write(&temporary, content)?;
            std::fs::rename(&temporary, self.0.join(name))
        };
        let outcome: std::io::Result<()> = write();
        if outcome.is_err() {
            let _ = std::fs::remove_file(&temporary);
        }
        outcome.is_ok()
    }
}

/// The JSON object in a file. Empty if the file is missing or damaged.
pub(crate) fn read_json(cache: &dyn DeviceCache, name: &str) -> Map<String, Value> {
    serde_json::from_slice(&cache.read(name).unwrap_or_default()).unwrap_or_default()
}

//! [`Kept`]: where the caller keeps what was found out about devices: small JSON files, and what the driver made of
//! pipelines. All of it can be found out again, so a file that is missing or damaged is the same as none, and one that cannot
//! be written is not an error.

use std::{
    fmt::Debug,
    hash::{DefaultHasher, Hasher},
    path::PathBuf,
    sync::Arc,
};

use serde_json::{Map, Value};
use webgpu_kernels::Gpu;

/// Files by name, each read and written whole.
pub trait Kept: Debug + Send + Sync {
    /// The content of a file, if it is there.
    fn read(&self, name: &str) -> Option<Vec<u8>>;
    /// Writes a file, whole or not at all; whether it was written.
    fn write(&self, name: &str, content: &[u8]) -> bool;
}

/// [`Kept`] in a folder, which is made when there is something to keep.
#[derive(Debug)]
pub struct KeptFolder(PathBuf);

impl KeptFolder {
    /// What is kept in `folder`.
    pub fn at(folder: impl Into<PathBuf>) -> Arc<dyn Kept> {
        Arc::new(KeptFolder(folder.into()))
    }
}

impl Kept for KeptFolder {
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

/// The content of a JSON file, an object; nothing where there is none.
pub(crate) fn read_json(kept: &dyn Kept, name: &str) -> Map<String, Value> {
    serde_json::from_slice(&kept.read(name).unwrap_or_default()).unwrap_or_default()
}

/// Most bytes of pipelines that are kept of a device: what is more is begun anew.
const MOST_BYTES: usize = 64 << 20;
/// Bytes of the checksum before the pipelines.
const SUM_BYTES: usize = 8;

/// The pipelines of a device that its driver made before, taken up and kept.
pub(crate) struct KeptPipelines {
    file: String,
    /// What was found.
    sum: u64,
}

impl KeptPipelines {
    /// Takes up what is kept of the device, before it makes a pipeline. `None`: it keeps nothing.
    pub fn take_up(gpu: &Gpu, kept: &dyn Kept) -> Option<KeptPipelines> {
        let file = format!("{}.bin", gpu.pipeline_key()?);
        let content = kept.read(&file).unwrap_or_default();
        let is_whole = |(sum, data): &(&[u8; SUM_BYTES], &[u8])| {
            data.len() <= MOST_BYTES && u64::from_le_bytes(**sum) == checksum(data)
        };
        let found = content.split_first_chunk().filter(is_whole).map(|(_, data)| data);
        gpu.keep_pipelines(found);
        Some(KeptPipelines { file, sum: checksum(found.unwrap_or_default()) })
    }

    /// Keeps what there is now, where that is something else.
    pub fn keep(&mut self, gpu: &Gpu, kept: &dyn Kept) {
        let Some(data) = gpu.pipeline_data() else { return };
        let sum = checksum(&data);
        if sum == self.sum || data.len() > MOST_BYTES {
            return;
        }
        self.sum = sum;
        kept.write(&self.file, &[&sum.to_le_bytes(), &data[..]].concat());
    }
}

fn checksum(data: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(data);
    hasher.finish()
}

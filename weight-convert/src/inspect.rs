//! [`inspect`]: the content of an MLC folder, from its index and configuration.

use std::{fs, path::Path};

use model_format::{ChatConfig, Error as FormatError, TensorCache};

use crate::Result;

/// Index and configuration of an MLC folder, checked against its files.
#[derive(Debug, Clone)]
pub struct Contents {
    /// The index.
    pub cache: TensorCache,
    /// The configuration; `None` in a folder of weights only.
    pub chat_config: Option<ChatConfig>,
}

/// Reads the index and the configuration of `folder`. Checks that every shard exists with its full size.
pub fn inspect(folder: &Path) -> Result<Contents> {
    let location = folder.display().to_string();
    let mut index = None;
    for name in TensorCache::FILE_NAMES {
        if let Some(text) = read(folder, name)? {
            index = Some(TensorCache::parse(&format!("{location}/{name}"), &text)?);
            break;
        }
    }
    let missing = |file: &str| FormatError::MissingFile { file: file.into(), folder: location.clone() };
    let cache = index.ok_or_else(|| missing(TensorCache::FILE_NAMES[0]))?;
    for shard in &cache.shards {
        let path = folder.join(&shard.data_path);
        let found = match fs::metadata(&path) {
            Ok(metadata) => metadata.len(),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(missing(&shard.data_path).into()),
            Err(source) => return Err(FormatError::Io { action: "read", path, source }.into()),
        };
        if found != shard.nbytes as u64 {
            let file = path.display().to_string();
            return Err(FormatError::FileSize { file, found, expected: shard.nbytes as u64 }.into());
        }
    }
    let chat_config = read(folder, ChatConfig::FILE_NAME)?.map(|text| ChatConfig::parse(&text)).transpose()?;
    Ok(Contents { cache, chat_config })
}

fn read(folder: &Path, name: &str) -> Result<Option<String>> {
    let path = folder.join(name);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(FormatError::Io { action: "read", path, source }.into()),
    }
}

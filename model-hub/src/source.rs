//! [`open`]: opens a path or a name as a [`Model`].

use std::io::Read;
use std::path::{Path, PathBuf};

use model_format::{ChatConfig, Checkpoint, SafetensorsCheckpoint};

use crate::error::io;
use crate::hub::{self, RepoName};
use crate::{Error, GgufCheckpoint, HubConfig, Progress, Result, demo};

/// An opened source.
pub enum Model {
    /// A checkpoint to convert, quantize or run directly: a Hugging Face folder (float or GPTQ) or a GGUF file.
    Checkpoint(Box<dyn Checkpoint>),
    /// A converted model: a folder with `mlc-chat-config.json`, an index, shards and a tokenizer.
    Mlc(PathBuf),
}

impl Model {
    /// The checkpoint.
    ///
    /// # Errors
    ///
    /// [`Error::NotACheckpoint`] for an MLC folder.
    pub fn into_checkpoint(self) -> Result<Box<dyn Checkpoint>> {
        match self {
            Model::Checkpoint(checkpoint) => Ok(checkpoint),
            Model::Mlc(folder) => Err(Error::NotACheckpoint { folder }),
        }
    }
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Model::Checkpoint(checkpoint) => f.debug_tuple("Checkpoint").field(&checkpoint.location()).finish(),
            Model::Mlc(folder) => f.debug_tuple("Mlc").field(folder).finish(),
        }
    }
}

/// Opens `source`, which is a path or a name of the [crate's](crate) table. Downloads missing files first.
///
/// # Errors
///
/// [`Error::UnknownSource`] for a path or name of no known kind; the errors of the download; [`Error::Format`],
/// [`Error::BadGguf`] or [`Error::UnsupportedGguf`] if the files are unusable; [`Error::Cancelled`].
pub fn open(source: &str, hub: &HubConfig, progress: &mut dyn Progress) -> Result<Model> {
    let path = Path::new(source);
    if path.exists() {
        return open_path(path);
    }
    if source == demo::NAME {
        return open_path(&demo::fetch(hub, progress)?);
    }
    match RepoName::parse(source) {
        Ok(name) => open_path(&hub::fetch_model(&name, hub, progress)?),
        Err(reason) => Err(Error::UnknownSource { source_name: source.into(), reason }),
    }
}

/// Opens a local folder or file.
fn open_path(path: &Path) -> Result<Model> {
    if path.is_dir() {
        if path.join(ChatConfig::FILE_NAME).is_file() {
            return Ok(Model::Mlc(path.into()));
        }
        if !path.join("config.json").is_file()
            && let Some(file) = gguf_files(path).first()
        {
            let reason = format!("the folder has no `config.json`, but a GGUF file: name `{file}`");
            return Err(Error::UnknownSource { source_name: path.display().to_string(), reason });
        }
        return Ok(Model::Checkpoint(Box::new(SafetensorsCheckpoint::open(path)?)));
    }
    let mut magic = Vec::new();
    let file = std::fs::File::open(path).map_err(io("read", path))?;
    file.take(4).read_to_end(&mut magic).map_err(io("read", path))?;
    if magic == b"GGUF" || path.extension().is_some_and(|extension| extension == "gguf") {
        return Ok(Model::Checkpoint(Box::new(GgufCheckpoint::open(path)?)));
    }
    let reason = "the file is not a GGUF file; for a checkpoint, name the folder".into();
    Err(Error::UnknownSource { source_name: path.display().to_string(), reason })
}

/// Names of the GGUF files in a folder, sorted.
fn gguf_files(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.ends_with(".gguf"))
        .collect();
    names.sort();
    names
}

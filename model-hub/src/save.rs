//! [`save_checkpoint`]: writes any checkpoint as a Hugging Face folder.

use std::fs;
use std::io::Write;
use std::path::Path;

use model_format::Checkpoint;
use model_format::checkpoint::SafetensorsWriter;
use model_format::files::check_file_name;

use crate::Result;
use crate::error::io;

/// Writes `checkpoint` to `folder`: `model.safetensors`, `config.json` and the checkpoint's other companion files.
///
/// Each file appears complete or not at all, `config.json` last. Only one tensor is in memory at a time.
///
/// # Errors
///
/// [`Error::Format`](crate::Error::Format): [`model_format::Error::ForeignFiles`] if the folder is not empty, or an
/// error of reading a tensor or writing a file.
pub fn save_checkpoint(checkpoint: &dyn Checkpoint, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).map_err(io("create", folder))?;
    check_empty(folder)?;
    let tensors = checkpoint.tensors();
    let announced: Vec<_> = tensors.iter().map(|info| (info.name.clone(), info.dtype, info.shape.clone())).collect();
    let mut writer = SafetensorsWriter::create(&folder.join("model.safetensors"), &announced)?;
    for info in tensors {
        writer.write(&info.name, &checkpoint.tensor(&info.name)?)?;
    }
    writer.finish()?;

    let mut companions = checkpoint.companion_files()?;
    // Write config.json last: without it, the folder does not open as a model.
    companions.sort_by_key(|(name, _)| name == "config.json");
    for (name, content) in &companions {
        check_file_name(&checkpoint.location(), name)?;
        write_whole(folder, name, content)?;
    }
    Ok(())
}

/// Rejects a folder with files: we cannot tell whether we wrote them, so we replace none.
fn check_empty(folder: &Path) -> Result<()> {
    let entries =
        fs::read_dir(folder).and_then(Iterator::collect::<std::io::Result<Vec<_>>>).map_err(io("list", folder))?;
    let mut names: Vec<String> = entries.iter().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    if names.is_empty() {
        return Ok(());
    }
    let folder = folder.display().to_string();
    Err(model_format::Error::ForeignFiles { folder, names, replaceable: false }.into())
}

/// Writes a small file under a temporary name in `folder`, syncs it and renames it.
pub(crate) fn write_whole(folder: &Path, name: &str, content: &[u8]) -> Result<()> {
    let path = folder.join(name);
    let mut options = tempfile::Builder::new();
    // By default only the owner can read a temporary file. Use the permissions of an ordinary new file.
    #[cfg(unix)]
    options.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = options.tempfile_in(folder).map_err(io("write", folder))?;
    file.write_all(content).and_then(|()| file.as_file().sync_all()).map_err(io("write", &path))?;
    file.persist(&path).map_err(|error| io("write", &path)(error.error))?;
    Ok(())
}

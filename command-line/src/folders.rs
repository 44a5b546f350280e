//! Folders of the user for cached and remembered data.

use std::{env, path::PathBuf};

/// The folder for data that a program can compute again.
pub fn cache_folder(program: &str) -> Option<PathBuf> {
    let folder = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = || Some(folder("HOME").or_else(|| folder("USERPROFILE"))?.join(".cache"));
    Some(folder("XDG_CACHE_HOME").or_else(home)?.join(program))
}

/// The folder for data that a program remembers between runs, such as a history.
pub fn state_folder(program: &str) -> Option<PathBuf> {
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let folder = absolute("XDG_STATE_HOME")
        .or_else(|| absolute("LOCALAPPDATA"))
        .or_else(|| Some(absolute("HOME")?.join(".local/state")))?;
    Some(folder.join(program))
}

//! Repositories of the hub: selects the files of a model, and downloads them or one file of a data set to the cache.
//!
//! `client.rs` sends requests, `download.rs` transfers files, `cache.rs` stores them.

mod cache;
mod client;
mod download;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use hf_hub::{Repo, RepoType};
use model_format::checkpoint::COMPANIONS;
use model_format::files::check_file_name;
use model_format::{ChatConfig, TensorCache};
use serde_json::Value;

use self::cache::Cache;
use self::client::Client;
pub(crate) use self::download::hex;
use crate::error::io;
use crate::{Error, HubConfig, Progress, Result};

/// A repository and a revision of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RepoName {
    /// `org/name`.
    pub id: String,
    /// Branch, tag or commit.
    pub revision: String,
    /// True for a data set, false for a model.
    pub is_data_set: bool,
}

impl RepoName {
    /// Parses `org/name` or `org/name@revision`. The error is the reason for [`Error::UnknownSource`].
    pub fn parse(source: &str) -> Result<RepoName, String> {
        let (id, revision) = source.split_once('@').unwrap_or((source, "main"));
        let plain = |part: &str| check_file_name("", part).is_ok() && part.len() <= 96 && !part.contains("..");
        let parts: Vec<_> = id.split('/').collect();
        match parts[..] {
            [org, name] if plain(org) && plain(name) => {}
            [_] => return Err("no such file or folder, and not a name on the hub (`org/name`)".into()),
            _ => return Err("no such file or folder".into()),
        }
        // The revision becomes a path below `refs/`, so its parts must be plain file names.
        if !revision.split('/').all(|part| plain(part) && !part.ends_with(".lock")) {
            return Err(format!("{revision:?} is not a branch, tag or commit"));
        }
        Ok(RepoName { id: id.into(), revision: revision.into(), is_data_set: false })
    }

    fn repo(&self) -> Repo {
        let kind = if self.is_data_set { RepoType::Dataset } else { RepoType::Model };
        Repo::with_revision(self.id.clone(), kind, self.revision.clone())
    }
}

impl std::fmt::Display for RepoName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.revision.as_str() {
            "main" => f.write_str(&self.id),
            revision => write!(f, "{}@{revision}", self.id),
        }
    }
}

/// Downloads the missing files of a model to the cache and returns its folder.
pub(crate) fn fetch_model(name: &RepoName, config: &HubConfig, progress: &mut dyn Progress) -> Result<PathBuf> {
    fetch(name, config, progress, &|snapshot, progress| {
        snapshot.fetch_model(progress)?;
        Ok(snapshot.folder.clone())
    })
}

/// Returns the path of a data set's file in the cache, after downloading it if it is missing.
///
/// `repository` is `org/name` or `org/name@revision`. `file` is a path in the repository.
///
/// # Errors
///
/// [`Error::NotFound`] for an unknown repository, revision or file; [`Error::Offline`] if the file is not in the cache
/// and the configuration is offline; [`Error::Unreachable`], [`Error::AccessDenied`], [`Error::BadAnswer`],
/// [`Error::Transfer`], [`Error::Cancelled`]; [`Error::Format`] for a failed checksum or a disk error.
pub fn fetch_data_file(
    repository: &str,
    file: &str,
    config: &HubConfig,
    progress: &mut dyn Progress,
) -> Result<PathBuf> {
    let name = RepoName::parse(repository)
        .map_err(|reason| Error::NotFound { what: format!("data set `{repository}`: {reason}") })?;
    let name = RepoName { is_data_set: true, ..name };
    fetch(&name, config, progress, &|snapshot, progress| snapshot.get(file, progress))
}

/// Calls `get` with a snapshot of the repository. The snapshot downloads files that are missing in the cache. If the
/// configuration is offline or the hub is unreachable, the snapshot has the cached files only.
fn fetch<T>(
    name: &RepoName,
    config: &HubConfig,
    progress: &mut dyn Progress,
    get: &dyn Fn(&mut Snapshot<'_>, &mut dyn Progress) -> Result<T>,
) -> Result<T> {
    let cache = Cache::new(config, name.repo());
    let cached = |progress: &mut dyn Progress| {
        let commit = cache.read_ref(&name.revision).unwrap_or_else(|| name.revision.clone());
        get(&mut Snapshot { name, cache: &cache, folder: cache.snapshot(&commit), remote: None }, progress)
    };
    if config.offline {
        return cached(progress);
    }
    let client = Client::new(config)?;
    let info = match client.repo_info(name, progress) {
        Ok(info) => info,
        Err(unreachable @ Error::Unreachable { .. }) => {
            // Fall back to the cache, like the hub's own tools.
            let Ok(found) = cached(&mut ()) else { return Err(unreachable) };
            progress.message(&format!("{unreachable}; using the copy in the cache"));
            return Ok(found);
        }
        Err(other) => return Err(other),
    };
    let folder = cache.snapshot(&info.sha);
    let files = info.siblings.into_iter().map(|file| file.rfilename).collect();
    let remote = Remote { client, commit: info.sha.clone(), files };
    let found = get(&mut Snapshot { name, cache: &cache, folder, remote: Some(remote) }, progress)?;
    // Write the ref last, so that offline runs find complete revisions only.
    cache.write_ref(&name.revision, &info.sha)?;
    Ok(found)
}

/// One revision of a repository, in the cache and on the hub.
struct Snapshot<'a> {
    name: &'a RepoName,
    cache: &'a Cache,
    /// Folder of its files in the cache.
    folder: PathBuf,
    /// The hub; `None` to use the cache only.
    remote: Option<Remote<'a>>,
}

struct Remote<'a> {
    client: Client<'a>,
    commit: String,
    /// All files of the repository.
    files: BTreeSet<String>,
}

impl Snapshot<'_> {
    /// Fetches the files of a model.
    fn fetch_model(&mut self, progress: &mut dyn Progress) -> Result<()> {
        if self.has(ChatConfig::FILE_NAME) {
            self.fetch_mlc(progress)
        } else if self.has("config.json") {
            self.fetch_checkpoint(progress)
        } else if self.remote.is_some() {
            Err(self.no_weights())
        } else {
            Err(self.offline("config.json"))
        }
    }

    /// Fetches an MLC folder: configuration, index, tokenizer, shards.
    fn fetch_mlc(&mut self, progress: &mut dyn Progress) -> Result<()> {
        let config = ChatConfig::parse(&self.read(ChatConfig::FILE_NAME, progress)?)?;
        let index =
            TensorCache::FILE_NAMES.into_iter().find(|name| self.has(name)).unwrap_or(TensorCache::FILE_NAMES[0]);
        let index = TensorCache::parse(index, &self.read(index, progress)?)?;
        for file in config.tokenizer_files.iter().filter(|file| self.has(file)).collect::<Vec<_>>() {
            self.get(file, progress)?;
        }
        index.shards.iter().try_for_each(|shard| self.get(&shard.data_path, progress).map(drop))
    }

    /// Fetches a Hugging Face folder: configuration, tokenizer, weights in safetensors.
    fn fetch_checkpoint(&mut self, progress: &mut dyn Progress) -> Result<()> {
        const INDEX: &str = "model.safetensors.index.json";
        for file in COMPANIONS.iter().chain(&["quantize_config.json"]).filter(|file| self.has(file)).collect::<Vec<_>>()
        {
            self.get(file, progress)?;
        }
        if self.has(INDEX) {
            let index = self.read(INDEX, progress)?;
            return shard_names(&index)?.iter().try_for_each(|shard| self.get(shard, progress).map(drop));
        }
        let names = self.with_extension("safetensors");
        match &names[..] {
            names if names.iter().any(|name| name == "model.safetensors") => self.get("model.safetensors", progress)?,
            [only] => self.get(only, progress)?,
            _ if self.remote.is_some() => return Err(self.no_weights()),
            _ => return Err(self.offline("model.safetensors")),
        };
        Ok(())
    }

    /// True if the repository has the file. Without the hub, true if the cache has the file.
    fn has(&self, file: &str) -> bool {
        match &self.remote {
            Some(remote) => remote.files.contains(file),
            None => self.folder.join(file).is_file(),
        }
    }

    /// Files with this extension in the repository's top folder.
    fn with_extension(&self, extension: &str) -> Vec<String> {
        let wanted = |name: &String| check_file_name("", name).is_ok() && name.ends_with(&format!(".{extension}"));
        match &self.remote {
            Some(remote) => remote.files.iter().filter(|name| wanted(name)).cloned().collect(),
            None => {
                let entries = std::fs::read_dir(&self.folder).into_iter().flatten().flatten();
                entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(wanted).collect()
            }
        }
    }

    /// Path of a file in this snapshot, after downloading it if it is missing.
    fn get(&mut self, file: &str, progress: &mut dyn Progress) -> Result<PathBuf> {
        file.split('/').try_for_each(|part| check_file_name(&self.name.to_string(), part))?;
        let path = self.folder.join(file);
        if path.is_file() {
            return Ok(path);
        }
        let Some(remote) = &self.remote else { return Err(self.offline(file)) };
        download::download(&remote.client, self.cache, self.name, &remote.commit, file, progress)?;
        Ok(path)
    }

    /// Content of a small text file in this snapshot.
    fn read(&mut self, file: &str, progress: &mut dyn Progress) -> Result<String> {
        let path = self.get(file, progress)?;
        std::fs::read_to_string(&path).map_err(io("read", path))
    }

    fn offline(&self, file: &str) -> Error {
        Error::Offline { repo: self.name.to_string(), file: file.into(), cache: self.cache.root().into() }
    }

    fn no_weights(&self) -> Error {
        let others = ["gguf", "bin", "pth", "pt"].iter().flat_map(|extension| self.with_extension(extension));
        Error::NoWeights { repo: self.name.to_string(), others: others.collect() }
    }
}

/// The distinct shards in an index of safetensors files.
fn shard_names(index_json: &str) -> Result<BTreeSet<String>> {
    const FILE: &str = "model.safetensors.index.json";
    let malformed = |reason: String| model_format::Error::Malformed { file: FILE.into(), reason };
    let index: Value = serde_json::from_str(index_json).map_err(|error| malformed(error.to_string()))?;
    let map = index.get("weight_map").and_then(Value::as_object);
    let map = map.ok_or_else(|| malformed("it has no `weight_map`".into()))?;
    map.values()
        .map(|file| {
            let file = file.as_str().ok_or_else(|| malformed(format!("{file} is not a file name")))?;
            check_file_name(FILE, file)?;
            Ok(file.to_owned())
        })
        .collect()
}

/// True if `text` consists of `digits` hexadecimal digits.
fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The trimmed content of a small file of the cache. `None` if it is missing or not UTF-8; another tool may have
/// written it.
fn read_small(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repository_names_are_parsed_or_rejected() {
        let parse = |source| RepoName::parse(source).map(|name| (name.id, name.revision));
        let found = |id: &str, revision: &str| Ok((id.to_owned(), revision.to_owned()));
        assert_eq!(parse("org/name"), found("org/name", "main"));
        assert_eq!(parse("org/name-1.5_x@v1.0"), found("org/name-1.5_x", "v1.0"));
        assert_eq!(parse("org/name@refs/pr/3"), found("org/name", "refs/pr/3"));
        for bad in [
            "",
            "name",
            "a/b/c",
            "../b",
            "a/..",
            "/a/b",
            "./a",
            "a/b@",
            "a/b@../x",
            "a/b@/x",
            "a/b@x//y",
            "a b/c",
            "a/b?x",
            "a/b#x",
            "a/b%2f",
            "a/b@main@x",
            "a\\b/c",
            "a/b\n",
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_index_with_a_path_is_rejected() {
        let names =
            shard_names(r#"{"weight_map": {"x": "b.safetensors", "y": "a.safetensors", "z": "b.safetensors"}}"#);
        assert_eq!(names.unwrap().into_iter().collect::<Vec<_>>(), ["a.safetensors", "b.safetensors"]);
        for bad in ["", "[]", r#"{"weight_map": {"x": 1}}"#, r#"{"weight_map": {"x": "../../x.safetensors"}}"#] {
            assert!(shard_names(bad).is_err(), "{bad}");
        }
    }
}

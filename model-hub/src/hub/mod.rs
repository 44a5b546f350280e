//! Repositories of the hub: which files of one are a model, and getting them, or one file of a data set, into the cache.
//!
//! `client.rs` asks, `download.rs` transfers, `cache.rs` keeps.

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
    /// Whether it holds a data set; else a model.
    pub is_data_set: bool,
}

impl RepoName {
    /// Parses `org/name` or `org/name@revision`; the error says what it looks like instead.
    pub fn parse(source: &str) -> Result<RepoName, String> {
        let (id, revision) = source.split_once('@').unwrap_or((source, "main"));
        let plain = |part: &str| check_file_name("", part).is_ok() && part.len() <= 96 && !part.contains("..");
        let parts: Vec<_> = id.split('/').collect();
        match parts[..] {
            [org, name] if plain(org) && plain(name) => {}
            [_] => return Err("there is no such file or folder, and names on the hub are `org/name`".into()),
            _ => return Err("there is no such file or folder".into()),
        }
        // A revision becomes a path below `refs/`.
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

/// Gets the files of a model into the cache, those that are not there yet, and says in which folder they are.
pub(crate) fn fetch_model(name: &RepoName, config: &HubConfig, progress: &mut dyn Progress) -> Result<PathBuf> {
    fetch(name, config, progress, &|snapshot, progress| {
        snapshot.fetch_model(progress)?;
        Ok(snapshot.folder.clone())
    })
}

/// Gets one file of a data set of the hub into the cache, if it is not there yet, and says where it is.
///
/// `repository` is `org/name` or `org/name@revision`, `file` a path within it.
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

/// Gets what `get` wants of a repository: from the hub what is not in the cache, and all of it from the cache where the
/// hub may not be asked or does not answer.
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
            // As the hub's own tools do: what is here is better than nothing.
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
    // Last, so that working offline finds a revision only when it is complete.
    cache.write_ref(&name.revision, &info.sha)?;
    Ok(found)
}

/// One revision of a repository: in the cache, and on the hub where that may be asked.
struct Snapshot<'a> {
    name: &'a RepoName,
    cache: &'a Cache,
    /// Where its files appear.
    folder: PathBuf,
    remote: Option<Remote<'a>>,
}

struct Remote<'a> {
    client: Client<'a>,
    commit: String,
    /// Every file that the repository has.
    files: BTreeSet<String>,
}

impl Snapshot<'_> {
    /// Gets what a model needs.
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

    /// An MLC folder: configuration, index, tokenizer, shards.
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

    /// A Hugging Face folder: configuration, tokenizer, weights in safetensors.
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

    /// Whether the repository has the file; of a cached one only what is there is known.
    fn has(&self, file: &str) -> bool {
        match &self.remote {
            Some(remote) => remote.files.contains(file),
            None => self.folder.join(file).is_file(),
        }
    }

    /// Files of the repository's top folder with this extension.
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

    /// Path of a file of this snapshot, which is downloaded where it is not there yet.
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

    /// Text of a small file of this snapshot.
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

/// The shards that an index of safetensors files names.
fn shard_names(index_json: &str) -> Result<BTreeSet<String>> {
    const FILE: &str = "model.safetensors.index.json";
    let malformed = |reason: String| model_format::Error::Malformed { file: FILE.into(), reason };
    let index: Value = serde_json::from_str(index_json).map_err(|error| malformed(error.to_string()))?;
    let map = index.get("weight_map").and_then(Value::as_object);
    let map = map.ok_or_else(|| malformed("it has no `weight_map`".into()))?;
    map.values()
        .map(|file| {
            let file = file.as_str().ok_or_else(|| malformed(format!("{file} is not the name of a file")))?;
            check_file_name(FILE, file)?;
            Ok(file.to_owned())
        })
        .collect()
}

/// Whether `text` is `digits` hexadecimal digits.
fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// A file that may have been written by another user of the cache.
fn read_small(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_repositories() {
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
    fn an_index_names_only_files_beside_it() {
        let names =
            shard_names(r#"{"weight_map": {"x": "b.safetensors", "y": "a.safetensors", "z": "b.safetensors"}}"#);
        assert_eq!(names.unwrap().into_iter().collect::<Vec<_>>(), ["a.safetensors", "b.safetensors"]);
        for bad in ["", "[]", r#"{"weight_map": {"x": 1}}"#, r#"{"weight_map": {"x": "../../x.safetensors"}}"#] {
            assert!(shard_names(bad).is_err(), "{bad}");
        }
    }
}

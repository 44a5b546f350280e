//! Downloads one file of a repository to the cache: resumes an earlier attempt and verifies the hub's hash.

use std::fs::{self, File};
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::thread::sleep;

use model_format::Error as FormatError;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use ureq::Body;
use ureq::http::{HeaderMap, Response, StatusCode};

use super::cache::Cache;
use super::client::{Client, Failure, FileInfo, text, transfer_error};
use super::{RepoName, is_hex};
use crate::error::io;
use crate::{Error, Progress, Result};

/// Bytes per read. The caller can cancel between reads.
const CHUNK: usize = 256 << 10;
/// Maximum number of consecutive failures without received bytes.
const MAX_FAILURES: u32 = 5;

/// Downloads `file` of a commit and links it into the commit's snapshot.
pub(super) fn download(
    client: &Client<'_>,
    cache: &Cache,
    name: &RepoName,
    commit: &str,
    file: &str,
    progress: &mut dyn Progress,
) -> Result<()> {
    let info = client.file_info(name, commit, file, progress)?;
    let blob = cache.blob(&info.etag);
    let folder = blob.parent().expect("a blob path has a parent");
    fs::create_dir_all(folder).map_err(io("create", folder))?;
    let _lock = cache.lock(&info.etag, progress)?;
    if !blob.is_file() {
        let part = Part::open(cache.incomplete(&info.etag), file, &info)?;
        progress.start(file, part.have, info.size);
        transfer(client, name, commit, &info, part, progress)?.persist(&blob)?;
        progress.finish();
    }
    cache.link(&info.etag, commit, file)
}

/// Completes `part` and verifies it.
fn transfer(
    client: &Client<'_>,
    name: &RepoName,
    commit: &str,
    info: &FileInfo,
    mut part: Part,
    progress: &mut dyn Progress,
) -> Result<Part> {
    // Etag of the content server, once known. Until then, resuming is safe only if the hub's etag is a hash: the
    // complete file is checked against it.
    let mut content_etag = info.is_from_content_server.then(|| format!("\"{}\"", info.etag));
    let mut failures = 0;
    let mut is_second_copy = false;
    loop {
        if progress.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let before = part.have;
        match fetch_rest(client, name, commit, info, &mut part, &mut content_etag, progress) {
            Ok(()) => match part.check(info) {
                Ok(()) => return Ok(part),
                // The old part or the transfer was corrupted: download again from the start, once.
                Err(error) => {
                    part.restart()?;
                    if is_second_copy {
                        part.remove();
                        return Err(error);
                    }
                    is_second_copy = true;
                    progress.message(&format!("{error}; downloading it again"));
                    progress.update(0);
                }
            },
            Err(Failure::Transient(reason, wait)) => {
                failures = if part.have > before { 1 } else { failures + 1 };
                if failures == MAX_FAILURES {
                    return Err(transfer_error(Failure::Transient(reason, None), &part.file));
                }
                sleep(wait.unwrap_or_default().max(client.backoff(failures)));
            }
            Err(Failure::Final(error)) => return Err(error),
        }
    }
}

/// Requests the missing bytes and appends them.
fn fetch_rest(
    client: &Client<'_>,
    name: &RepoName,
    commit: &str,
    info: &FileInfo,
    part: &mut Part,
    content_etag: &mut Option<String>,
    progress: &mut dyn Progress,
) -> Result<(), Failure> {
    if info.size.is_some_and(|size| part.have > size) {
        part.restart()?;
    }
    if part.have > 0 && info.size == Some(part.have) {
        return Ok(());
    }
    let response = client.get(name, commit, &part.file, part.have, content_etag.as_deref())?;
    let headers = response.headers();
    if response.status() == StatusCode::PARTIAL_CONTENT {
        let range = text(headers, "content-range").and_then(|range| first_and_total(&range));
        let expected = range.is_some_and(|(first, total)| {
            first == part.have && (total.is_none() || info.size.is_none() || total == info.size)
        });
        if !expected {
            // Another range than requested: the part may belong to other content.
            part.restart()?;
            progress.update(0);
            return Err(Failure::Transient("the server sent a different range than requested".into(), None));
        }
    } else if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
        part.restart()?;
        progress.update(0);
        return Err(Failure::Transient("the server's file is shorter than the downloaded part".into(), None));
    } else if part.have > 0 {
        // The server sent the whole file: it does not support ranges, or the content has changed.
        part.restart()?;
        progress.update(0);
    }
    if let Some(etag) = strong_etag(headers) {
        *content_etag = Some(etag);
    }
    append(response, info, part, progress)
}

/// Appends a response's body.
fn append(
    mut response: Response<Body>,
    info: &FileInfo,
    part: &mut Part,
    progress: &mut dyn Progress,
) -> Result<(), Failure> {
    let length = text(response.headers(), "content-length").and_then(|length| length.parse::<u64>().ok());
    let end = info.size.or_else(|| Some(part.have + length?));
    let mut body = response.body_mut().as_reader();
    let mut chunk = vec![0; CHUNK];
    loop {
        if progress.is_cancelled() {
            return Err(Error::Cancelled.into());
        }
        let count = match body.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) => return Err(Failure::Transient(error.to_string(), None)),
        };
        if end.is_some_and(|end| part.have + count as u64 > end) {
            part.restart()?;
            return Err(Failure::Transient("the server sent more bytes than the file has".into(), None));
        }
        part.append(&chunk[..count])?;
        progress.update(part.have);
    }
    match end {
        Some(end) if part.have < end => {
            Err(Failure::Transient(format!("the connection ended after {} of {end} bytes", part.have), None))
        }
        _ => Ok(()),
    }
}

/// First byte and total size from a `Content-Range` header: `bytes FIRST-LAST/TOTAL`.
fn first_and_total(range: &str) -> Option<(u64, Option<u64>)> {
    let (span, total) = range.trim().strip_prefix("bytes ")?.split_once('/')?;
    Some((span.split_once('-')?.0.parse().ok()?, total.parse().ok()))
}

/// The etag with its quotes. `None` for a weak etag, which does not guarantee identical bytes.
fn strong_etag(headers: &HeaderMap) -> Option<String> {
    text(headers, "etag").filter(|etag| etag.starts_with('"') && etag.ends_with('"') && etag.len() > 2)
}

/// A partially downloaded file.
struct Part {
    path: PathBuf,
    handle: File,
    /// Name in the repository.
    file: String,
    /// Number of bytes present.
    have: u64,
    /// Hash state of these bytes.
    sha256: Sha256,
}

impl Part {
    /// Opens the part of an earlier attempt, or an empty one. Discards the earlier part if the etag is not a hash,
    /// because the complete file could then not be verified.
    fn open(path: PathBuf, file: &str, info: &FileInfo) -> Result<Part> {
        let handle = File::options().create(true).read(true).append(true).open(&path).map_err(io("create", &path))?;
        let mut part = Part { path, handle, file: file.into(), have: 0, sha256: Sha256::new() };
        if !is_hex(&info.etag, 64) && !is_hex(&info.etag, 40) {
            part.restart()?;
        }
        let mut reader = BufReader::with_capacity(CHUNK, File::open(&part.path).map_err(io("read", &part.path))?);
        part.have = hash_all(&mut reader, &mut part.sha256).map_err(io("read", &part.path))?;
        Ok(part)
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.handle.write_all(bytes).map_err(io("write", &self.path))?;
        self.sha256.update(bytes);
        self.have += bytes.len() as u64;
        Ok(())
    }

    fn restart(&mut self) -> Result<()> {
        self.handle.set_len(0).map_err(io("write", &self.path))?;
        self.handle.seek(SeekFrom::Start(0)).map_err(io("write", &self.path))?;
        (self.have, self.sha256) = (0, Sha256::new());
        Ok(())
    }

    /// Verifies the size and the hash: sha256 of large files (git-lfs and Xet), git's sha1 of small ones.
    fn check(&self, info: &FileInfo) -> Result<()> {
        if let Some(expected) = info.size.filter(|&size| size != self.have) {
            return Err(FormatError::FileSize { file: self.file.clone(), found: self.have, expected }.into());
        }
        let found = if is_hex(&info.etag, 64) {
            hex(&self.sha256.clone().finalize())
        } else if is_hex(&info.etag, 40) {
            // git hashes a header and the content; some mirrors hash only the content.
            let (git, plain) = (self.sha1(&format!("blob {}\0", self.have))?, self.sha1("")?);
            if plain.eq_ignore_ascii_case(&info.etag) { plain } else { git }
        } else {
            return Ok(());
        };
        if found.eq_ignore_ascii_case(&info.etag) {
            return Ok(());
        }
        Err(FormatError::Checksum { file: self.file.clone(), found, expected: info.etag.clone() }.into())
    }

    fn sha1(&self, header: &str) -> Result<String> {
        let mut sha1 = Sha1::new();
        sha1.update(header);
        let mut reader = File::open(&self.path).map_err(io("read", &self.path))?;
        hash_all(&mut reader, &mut sha1).map_err(io("read", &self.path))?;
        Ok(hex(&sha1.finalize()))
    }

    /// Moves the complete file to `blob`.
    fn persist(self, blob: &Path) -> Result<()> {
        self.handle.sync_all().map_err(io("write", &self.path))?;
        drop(self.handle);
        fs::rename(&self.path, blob).map_err(io("create", blob))
    }

    fn remove(self) {
        drop(self.handle);
        // Ignore a failure: the file is empty, so the next attempt starts from zero anyway.
        let _ = fs::remove_file(&self.path);
    }
}

/// Hashes the rest of `reader` and returns its length in bytes.
fn hash_all(reader: &mut impl Read, hash: &mut impl Digest) -> std::io::Result<u64> {
    let mut chunk = vec![0; CHUNK];
    let mut count = 0;
    loop {
        match reader.read(&mut chunk)? {
            0 => return Ok(count),
            read => {
                hash.update(&chunk[..read]);
                count += read as u64;
            }
        }
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_are_parsed_or_rejected() {
        assert_eq!(first_and_total("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(first_and_total("bytes 0-0/*"), Some((0, None)));
        for bad in ["", "bytes", "bytes */10", "bytes x-9/10", "items 5-9/10"] {
            assert_eq!(first_and_total(bad), None, "{bad}");
        }
    }
}

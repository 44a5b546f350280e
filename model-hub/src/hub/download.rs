//! One file of a repository into the cache: resumed where it stopped, checked against the hub's hash.

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

/// Bytes between two looks at the caller's wish to stop.
const PIECE: usize = 256 << 10;
/// Failures in a row, no byte having arrived between them, after which a transfer is given up.
const MAX_FAILURES: u32 = 5;

/// Makes `file` of a commit appear in its snapshot.
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
    let folder = blob.parent().expect("blobs lie in a folder");
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

/// Brings `part` to its end and checks it.
fn transfer(
    client: &Client<'_>,
    name: &RepoName,
    commit: &str,
    info: &FileInfo,
    mut part: Part,
    progress: &mut dyn Progress,
) -> Result<Part> {
    // The etag of the server that sends the content, once it has said it. Until then resuming is safe where the hub's
    // etag is a hash, because the whole is checked against it.
    let mut servers_etag = info.is_servers_own.then(|| format!("\"{}\"", info.etag));
    let mut failures = 0;
    let mut is_second_copy = false;
    loop {
        if progress.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let before = part.have;
        match fetch_rest(client, name, commit, info, &mut part, &mut servers_etag, progress) {
            Ok(()) => match part.check(info) {
                Ok(()) => return Ok(part),
                // The part may have been damaged before, or on its way: once more, from the beginning.
                Err(error) => {
                    part.restart()?;
                    if is_second_copy {
                        part.remove();
                        return Err(error);
                    }
                    is_second_copy = true;
                    progress.message(&format!("{error}; downloading it once more"));
                    progress.update(0);
                }
            },
            Err(Failure::Passing(reason, wait)) => {
                failures = if part.have > before { 1 } else { failures + 1 };
                if failures == MAX_FAILURES {
                    return Err(transfer_error(Failure::Passing(reason, None), &part.file));
                }
                sleep(wait.unwrap_or_default().max(client.backoff(failures)));
            }
            Err(Failure::Final(error)) => return Err(error),
        }
    }
}

/// Asks for the bytes that are missing and appends them.
fn fetch_rest(
    client: &Client<'_>,
    name: &RepoName,
    commit: &str,
    info: &FileInfo,
    part: &mut Part,
    servers_etag: &mut Option<String>,
    progress: &mut dyn Progress,
) -> Result<(), Failure> {
    if info.size.is_some_and(|size| part.have > size) {
        part.restart()?;
    }
    if part.have > 0 && info.size == Some(part.have) {
        return Ok(());
    }
    let response = client.get(name, commit, &part.file, part.have, servers_etag.as_deref())?;
    let headers = response.headers();
    if response.status() == StatusCode::PARTIAL_CONTENT {
        let range = text(headers, "content-range").and_then(|range| first_and_total(&range));
        let expected = range.is_some_and(|(first, total)| {
            first == part.have && (total.is_none() || info.size.is_none() || total == info.size)
        });
        if !expected {
            // Not the piece that was asked for: what is here belongs to something else.
            part.restart()?;
            progress.update(0);
            return Err(Failure::Passing("the server sent another part of the file than asked for".into(), None));
        }
    } else if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
        part.restart()?;
        progress.update(0);
        return Err(Failure::Passing("the server has fewer bytes than are here".into(), None));
    } else if part.have > 0 {
        // The whole file again: the server does not resume, or the content is another one.
        part.restart()?;
        progress.update(0);
    }
    if let Some(etag) = strong_etag(headers) {
        *servers_etag = Some(etag);
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
    let mut piece = vec![0; PIECE];
    loop {
        if progress.is_cancelled() {
            return Err(Error::Cancelled.into());
        }
        let count = match body.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) => return Err(Failure::Passing(error.to_string(), None)),
        };
        if end.is_some_and(|end| part.have + count as u64 > end) {
            part.restart()?;
            return Err(Failure::Passing("the server sent more bytes than the file has".into(), None));
        }
        part.append(&piece[..count])?;
        progress.update(part.have);
    }
    match end {
        Some(end) if part.have < end => {
            Err(Failure::Passing(format!("the connection ended after {} of {end} bytes", part.have), None))
        }
        _ => Ok(()),
    }
}

/// `bytes FIRST-LAST/TOTAL`.
fn first_and_total(range: &str) -> Option<(u64, Option<u64>)> {
    let (span, total) = range.trim().strip_prefix("bytes ")?.split_once('/')?;
    Some((span.split_once('-')?.0.parse().ok()?, total.parse().ok()))
}

/// The etag as it stands, with its quotes; a weak one promises nothing of bytes.
fn strong_etag(headers: &HeaderMap) -> Option<String> {
    text(headers, "etag").filter(|etag| etag.starts_with('"') && etag.ends_with('"') && etag.len() > 2)
}

/// A file on its way.
struct Part {
    path: PathBuf,
    handle: File,
    /// Its name in the repository.
    file: String,
    /// Bytes that are there.
    have: u64,
    /// Of those bytes.
    sha256: Sha256,
}

impl Part {
    /// Opens what an earlier attempt left, or begins. Without a hash to check the whole against, what is left is not
    /// trusted.
    fn open(path: PathBuf, file: &str, info: &FileInfo) -> Result<Part> {
        let handle = File::options().create(true).read(true).append(true).open(&path).map_err(io("create", &path))?;
        let mut part = Part { path, handle, file: file.into(), have: 0, sha256: Sha256::new() };
        if !is_hex(&info.etag, 64) && !is_hex(&info.etag, 40) {
            part.restart()?;
        }
        let mut reader = BufReader::with_capacity(PIECE, File::open(&part.path).map_err(io("read", &part.path))?);
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

    /// Size, and hash: sha256 of large files (git-lfs and Xet), git's sha1 of small ones.
    fn check(&self, info: &FileInfo) -> Result<()> {
        if let Some(expected) = info.size.filter(|&size| size != self.have) {
            return Err(FormatError::FileSize { file: self.file.clone(), found: self.have, expected }.into());
        }
        let found = if is_hex(&info.etag, 64) {
            hex(&self.sha256.clone().finalize())
        } else if is_hex(&info.etag, 40) {
            // git hashes a header with the content; some mirrors hash the content alone.
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

    /// Puts the complete file in its place.
    fn persist(self, blob: &Path) -> Result<()> {
        self.handle.sync_all().map_err(io("write", &self.path))?;
        drop(self.handle);
        fs::rename(&self.path, blob).map_err(io("create", blob))
    }

    fn remove(self) {
        drop(self.handle);
        // It is empty, and the next attempt would find it so.
        let _ = fs::remove_file(&self.path);
    }
}

/// Feeds all that is left of `reader` to `hash`, and counts it.
fn hash_all(reader: &mut impl Read, hash: &mut impl Digest) -> std::io::Result<u64> {
    let mut piece = vec![0; PIECE];
    let mut count = 0;
    loop {
        match reader.read(&mut piece)? {
            0 => return Ok(count),
            read => {
                hash.update(&piece[..read]);
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
    fn content_ranges() {
        assert_eq!(first_and_total("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(first_and_total("bytes 0-0/*"), Some((0, None)));
        for bad in ["", "bytes", "bytes */10", "bytes x-9/10", "items 5-9/10"] {
            assert_eq!(first_and_total(bad), None, "{bad}");
        }
    }
}

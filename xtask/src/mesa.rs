//! [`Mesa`]: a newer Mesa than Debian 12's, unpacked in `target/`: lavapipe for Dawn, and RADV, which compiles for absent
//! devices.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use crate::step::Steps;

/// RADV 26.1 and later opens no absent device. Its compiler's output differs by version.
const VERSION: &str = "25.0.7-2~bpo12+1";
const BACKPORTS: &str = "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] \
                         http://deb.debian.org/debian bookworm-backports main\n";
/// Folder of its libraries in the packages.
const LIBRARIES: &str = "root/usr/lib/x86_64-linux-gnu";

/// An unpacked Mesa.
pub struct Mesa {
    folder: PathBuf,
}

impl Mesa {
    /// The copy in `target/`, whether it exists or not.
    pub fn of(root: &Path) -> Mesa {
        Mesa { folder: root.join("target").join("mesa") }
    }

    /// Folder of its libraries.
    pub fn libraries(&self) -> PathBuf {
        self.folder.join(LIBRARIES)
    }

    /// The manifest of lavapipe, which runs on the CPU.
    pub fn lavapipe(&self) -> PathBuf {
        self.folder.join("lvp.json")
    }

    /// The manifest of RADV, AMD's driver.
    pub fn radv(&self) -> PathBuf {
        self.folder.join("radeon.json")
    }

    /// Fetches and unpacks it, unless it exists. It uses its own package lists and does not change the system.
    pub fn fetch(&self, steps: &mut Steps) -> Result<()> {
        if self.lavapipe().is_file() && self.radv().is_file() {
            return Ok(());
        }
        let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
        if !(release.contains("VERSION_CODENAME=bookworm") && cfg!(target_pointer_width = "64")) {
            bail!("Mesa {VERSION} is a package of Debian 12");
        }
        let folder = &self.folder;
        let made =
            |path: &Path| fs::create_dir_all(path).with_context(|| format!("cannot create `{}`", path.display()));
        made(&folder.join("lists/partial"))?;
        made(&folder.join("cache/archives/partial"))?;
        let sources = folder.join("sources.list");
        fs::write(&sources, BACKPORTS).with_context(|| format!("cannot write `{}`", sources.display()))?;
        let apt = |words: &[&str]| {
            let mut apt = Command::new("apt-get");
            let option = |name: &str, path: PathBuf| format!("{name}={}", path.display());
            apt.args(["-o", &option("Dir::Etc::SourceList", sources.clone()), "-o", "Dir::Etc::SourceParts=/dev/null"]);
            apt.args(["-o", &option("Dir::State::Lists", folder.join("lists"))]);
            apt.args(["-o", &option("Dir::Cache", folder.join("cache")), "--quiet"]).args(words).current_dir(folder);
            apt
        };
        steps.run("find a newer Vulkan driver", &mut apt(&["update", "--error-on=any"]))?;
        let drivers = format!("mesa-vulkan-drivers={VERSION}");
        let packages = ["download", &drivers, "libdrm2/bookworm-backports", "libdrm-amdgpu1/bookworm-backports"];
        steps.run("fetch it", &mut apt(&packages))?;
        let entries = fs::read_dir(folder).with_context(|| format!("cannot read `{}`", folder.display()))?;
        let packages = entries.flatten().map(|entry| entry.path());
        for package in packages.filter(|path| path.extension().is_some_and(|extension| extension == "deb")) {
            let mut unpack = Command::new("dpkg-deb");
            unpack.arg("-x").arg(&package).arg(folder.join("root"));
            let status = unpack.status().context("cannot run `dpkg-deb`")?;
            ensure!(status.success(), "cannot unpack `{}`: {status}", package.display());
        }
        // The manifests come last: their presence means that the copy is complete.
        for (name, manifest) in [("libvulkan_lvp.so", self.lavapipe()), ("libvulkan_radeon.so", self.radv())] {
            let library = self.libraries().join(name);
            ensure!(library.is_file(), "`{}` is not in the packages", library.display());
            let text = serde_json::json!({
                "file_format_version": "1.0.0",
                "ICD": {"library_path": library, "api_version": "1.4.305"},
            });
            fs::write(&manifest, text.to_string()).with_context(|| format!("cannot write `{}`", manifest.display()))?;
        }
        Ok(())
    }
}

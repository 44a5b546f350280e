//! The kernels in Chrome's WebGPU without Chrome: every variant that a browser would see is compiled and run by Dawn, from
//! npm's package `webgpu`, and compared with the same references as natively. On a software driver that is for the patient;
//! the tests of `web.rs` run the same cases in a browser, whose software GPU compiles them in a minute or two.
//!
//! Dawn wants a Vulkan driver newer than Debian 12's; there it is unpacked beside the system.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Error, Result, bail, ensure};

use crate::{
    programs::{PROGRAMS, cargo, program},
    setup,
    step::Steps,
};

/// What Dawn is told to run, from the root.
const CASES: &str = "target/dawn/cases";
/// The script and its package.
const FOLDER: &str = "webgpu-kernels/tests/dawn";
/// Of the newer driver, on Debian 12.
const BACKPORTS: &str = "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] \
                         http://deb.debian.org/debian bookworm-backports main\n";
const DRIVER_PACKAGES: [&str; 3] = ["mesa-vulkan-drivers", "libdrm2", "libdrm-amdgpu1"];

/// Runs every case: `cargo xtask dawn`.
pub fn run(root: &Path) -> Result<()> {
    let mut steps = Steps::new()?;
    setup::vulkan()?;
    setup::npm_packages(&mut steps, &root.join(FOLDER))?;
    let driver = driver(&mut steps, root)?;
    steps.run("compile the programs", &mut cargo(root, PROGRAMS))?;
    steps.run("cases for Dawn", program(root, "examples/export-cases").arg(CASES))?;
    steps.run("kernels in Dawn", node(root, &driver).arg(CASES))
}

/// Variables under which Dawn finds a device.
type Driver = Vec<(&'static str, PathBuf)>;

fn node(root: &Path, driver: &Driver) -> Command {
    let mut node = Command::new("node");
    node.arg(Path::new(FOLDER).join("run.mjs")).envs(driver.iter().cloned()).current_dir(root);
    node
}

/// The system's driver where Dawn takes it, else one of ours.
fn driver(steps: &mut Steps, root: &Path) -> Result<Driver> {
    let works = |driver: &Driver| {
        let output = node(root, driver).arg("--probe").output();
        output.is_ok_and(|output| output.status.success())
    };
    let of_system = Driver::new();
    if works(&of_system) {
        return Ok(of_system);
    }
    let folder = root.join("target").join("dawn").join("driver");
    let ours = unpacked(&folder);
    if works(&ours) {
        return Ok(ours);
    }
    fetch(steps, &folder).context("Dawn takes no Vulkan driver of this system, and a newer one cannot be had")?;
    ensure!(
        works(&ours),
        "Dawn takes neither a Vulkan driver of this system nor the newer one in `{}`",
        folder.display()
    );
    Ok(ours)
}

/// What a driver in `folder` is found by.
fn unpacked(folder: &Path) -> Driver {
    let libraries = folder.join("root/usr/lib/x86_64-linux-gnu");
    vec![("VK_DRIVER_FILES", folder.join("lavapipe.json")), ("LD_LIBRARY_PATH", libraries)]
}

/// Unpacks a newer lavapipe into `folder`, with package lists of its own; the system stays as it is.
fn fetch(steps: &mut Steps, folder: &Path) -> Result<()> {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    if !(release.contains("VERSION_CODENAME=bookworm") && cfg!(target_arch = "x86_64")) {
        bail!("only Debian 12 is known to have one: install Mesa 24 or later");
    }
    let made = |path: &Path| fs::create_dir_all(path).with_context(|| format!("cannot create `{}`", path.display()));
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
    steps.run("find a newer Vulkan driver", &mut apt(&["update"]))?;
    steps.run("fetch it", &mut apt(&[["download"].as_slice(), DRIVER_PACKAGES.as_slice()].concat()))?;
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read `{}`", folder.display()))?;
    let packages = entries.flatten().map(|entry| entry.path());
    for package in packages.filter(|path| path.extension().is_some_and(|extension| extension == "deb")) {
        let mut unpack = Command::new("dpkg-deb");
        let status =
            unpack.arg("-x").arg(&package).arg(folder.join("root")).status().context("cannot run `dpkg-deb`")?;
        ensure!(status.success(), "cannot unpack `{}`: {status}", package.display());
    }
    let library = folder.join("root/usr/lib/x86_64-linux-gnu/libvulkan_lvp.so");
    ensure!(library.is_file(), "`{}` is not in the packages", library.display());
    let manifest = serde_json::json!({
        "file_format_version": "1.0.0",
        "ICD": {"library_path": library, "api_version": "1.4.305"},
    });
    fs::write(folder.join("lavapipe.json"), manifest.to_string()).map_err(Error::from)
}

//! External requirements: a Vulkan driver, the wasm target, the bundler's packages, a browser. Each is found or fetched.
//! If that is impossible, the error names the packages to install.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use crate::step::{Interrupted, Steps};

/// The loader, and lavapipe: a Vulkan driver that needs no GPU.
const PACKAGES: [&str; 2] = ["libvulkan1", "mesa-vulkan-drivers"];
/// Node.js's package manager, which is a script on Windows.
pub const NPM: &str = if cfg!(windows) { "npm.cmd" } else { "npm" };
/// Names under which systems install Chromium.
const BROWSERS: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];

/// True if programs can use a GPU, real or software. Without a driver it installs lavapipe if apt-get exists and the user
/// is root; otherwise it prints the packages to install.
pub fn vulkan() -> Result<bool> {
    if !cfg!(target_os = "linux") || has_driver() {
        return Ok(true);
    }
    let packages = PACKAGES.join(" ");
    if !may_install() {
        eprintln!(
            "no Vulkan driver found: going on without a GPU; to have a software one, run \
             `sudo apt-get install {packages}` (Debian, Ubuntu) or your system's like"
        );
        return Ok(false);
    }
    eprintln!("no Vulkan driver found: installing {packages}");
    apt_install(&PACKAGES)?;
    Ok(has_driver())
}

/// Installs the target if the toolchain lacks it.
pub fn wasm_target(steps: &mut Steps, root: &Path, target: &str) -> Result<()> {
    let mut rustc = Command::new("rustc");
    rustc.args(["--print", "target-libdir", "--target", target]).current_dir(root);
    let output = rustc.output().context("cannot run `rustc`")?;
    let libraries = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    if output.status.success() && libraries.is_dir() {
        return Ok(());
    }
    let mut add = Command::new("rustup");
    add.args(["target", "add", target]).current_dir(root);
    steps.run("fetch the wasm target", &mut add).with_context(|| {
        format!("the engine cannot be compiled for browsers: Rust's target `{target}` is missing and cannot be fetched")
    })
}

/// Installs the packages in a folder's `package-lock.json` if they are missing or outdated.
pub fn npm_packages(steps: &mut Steps, folder: &Path) -> Result<()> {
    ensure!(
        has_program("node") && has_program("npm"),
        "install Node.js 20.19 or later, with npm, for `{}`",
        folder.display()
    );
    let changed = |name: &str| folder.join(name).metadata().and_then(|file| file.modified()).ok();
    // npm writes this when it is done.
    let installed = changed("node_modules/.package-lock.json");
    if installed.is_some() && installed >= changed("package-lock.json") {
        return Ok(());
    }
    let mut install = Command::new(NPM);
    install.args(["ci", "--no-audit", "--no-fund"]).current_dir(folder);
    steps.run("fetch npm packages", &mut install).with_context(|| {
        format!(
            "npm packages of `{}` cannot be fetched (`npm config set registry URL` names a registry that can be reached)",
            folder.display()
        )
    })
}

/// A Chromium to test the page in: the one `CHROMIUM` names, or the system's; `None` is Playwright's own.
pub fn browser(steps: &mut Steps, folder: &Path) -> Result<Option<PathBuf>> {
    if let Some(named) = env::var_os("CHROMIUM") {
        let named = PathBuf::from(named);
        ensure!(named.is_file(), "`CHROMIUM` names `{}`, which is not there", named.display());
        return Ok(Some(named));
    }
    let installed = || BROWSERS.iter().find_map(|name| program(name));
    if let Some(installed) = installed() {
        return Ok(Some(installed));
    }
    if may_install() && Path::new("/etc/debian_version").exists() {
        eprintln!("no Chromium found: installing it");
        if apt_install(&["chromium"]).is_ok()
            && let Some(installed) = installed()
        {
            return Ok(Some(installed));
        }
    }
    let mut install = Command::new("node");
    install.args(["node_modules/playwright-core/cli.js", "install", "chromium-headless-shell"]).current_dir(folder);
    match steps.run("fetch a browser", &mut install) {
        Ok(()) => Ok(None),
        Err(error) if error.is::<Interrupted>() => Err(error),
        Err(error) => bail!(
            "the page cannot be tested: no Chromium found, and fetching one failed ({error:#}); install one, or set `CHROMIUM` \
             to its path"
        ),
    }
}

/// True if lavapipe is the only device.
pub fn has_only_lavapipe() -> bool {
    let usable: Vec<PathBuf> = drivers().into_iter().filter(|driver| is_usable(driver)).collect();
    !usable.is_empty() && usable.iter().all(|driver| name(driver).starts_with("lvp"))
}

/// True if this process may install system packages.
fn may_install() -> bool {
    is_root() && has_program("apt-get")
}

fn apt_install(packages: &[&str]) -> Result<()> {
    apt_get(&["update", "--quiet"])?;
    apt_get(&[["install", "--yes", "--quiet", "--no-install-recommends"].as_slice(), packages].concat())
}

fn apt_get(arguments: &[&str]) -> Result<()> {
    let status = Command::new("apt-get").args(arguments).env("DEBIAN_FRONTEND", "noninteractive").status()?;
    ensure!(status.success(), "`apt-get {}` failed: {status}", arguments.join(" "));
    Ok(())
}

fn has_driver() -> bool {
    has_loader() && drivers().iter().any(|driver| is_usable(driver))
}

/// libvulkan, where the dynamic linker finds it.
fn has_loader() -> bool {
    let listed = ["ldconfig", "/sbin/ldconfig"].iter().any(|ldconfig| {
        let output = Command::new(ldconfig).arg("-p").output();
        output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("libvulkan.so.1"))
    });
    listed || paths("LD_LIBRARY_PATH").iter().any(|folder| folder.join("libvulkan.so.1").exists())
}

/// The drivers' manifests, where the loader looks for them.
fn drivers() -> Vec<PathBuf> {
    let named = [paths("VK_DRIVER_FILES"), paths("VK_ICD_FILENAMES")].concat();
    if !named.is_empty() {
        return named;
    }
    let mut folders = vec![PathBuf::from("/etc"), "/usr/local/share".into(), "/usr/share".into()];
    folders.extend(paths("XDG_DATA_DIRS"));
    folders.extend(env::var_os("HOME").map(|home| Path::new(&home).join(".local/share")));
    let entries = folders.iter().filter_map(|folder| folder.join("vulkan/icd.d").read_dir().ok()).flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .collect()
}

/// A driver package may be installed without its device.
fn is_usable(driver: &Path) -> bool {
    let has_device = |pattern: &str, folder: &str| {
        let mut entries = Path::new(folder).read_dir().into_iter().flatten().flatten();
        entries.any(|entry| entry.file_name().to_string_lossy().starts_with(pattern))
    };
    driver.exists()
        && match name(driver) {
            name if is_software(Path::new(&name)) => true,
            name if name.contains("nvidia") => has_device("nvidia0", "/dev"),
            _ => has_device("renderD", "/dev/dri") || has_device("dxg", "/dev"),
        }
}

fn is_software(driver: &Path) -> bool {
    name(driver).starts_with("lvp") || name(driver).contains("swiftshader")
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn paths(variable: &str) -> Vec<PathBuf> {
    env::var_os(variable).map(|value| env::split_paths(&value).collect()).unwrap_or_default()
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}

fn has_program(name: &str) -> bool {
    program(name).is_some()
}

fn program(name: &str) -> Option<PathBuf> {
    let ending = if cfg!(windows) { ".exe" } else { "" };
    // A program of Windows may also be a script.
    let names = [format!("{name}{ending}"), format!("{name}.cmd")];
    let folders = paths("PATH");
    folders.iter().flat_map(|folder| names.iter().map(|name| folder.join(name))).find(|path| path.is_file())
}

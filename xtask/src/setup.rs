//! [`vulkan`]: finds a Vulkan driver, or installs the software one where that is ours to do.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, ensure};

/// The loader, and lavapipe: a Vulkan driver that needs no GPU.
const PACKAGES: [&str; 2] = ["libvulkan1", "mesa-vulkan-drivers"];

/// Whether programs can use a GPU, real or software, installing lavapipe where there is no driver, apt-get is there and
/// the user is root. Elsewhere it says what to install.
pub fn vulkan() -> Result<bool> {
    if !cfg!(target_os = "linux") || has_driver() {
        return Ok(true);
    }
    let packages = PACKAGES.join(" ");
    if !is_root() || !has_program("apt-get") {
        eprintln!(
            "no Vulkan driver found: going on without a GPU; to have a software one, run \
             `sudo apt-get install {packages}` (Debian, Ubuntu) or your system's like"
        );
        return Ok(false);
    }
    eprintln!("no Vulkan driver found: installing {packages}");
    apt_get(&["update", "--quiet"])?;
    apt_get(&[["install", "--yes", "--quiet", "--no-install-recommends"].as_slice(), PACKAGES.as_slice()].concat())?;
    Ok(has_driver())
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

fn has_program(program: &str) -> bool {
    paths("PATH").iter().any(|folder| folder.join(program).is_file())
}

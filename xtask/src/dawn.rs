//! `cargo xtask dawn`: the kernels in Dawn, Chrome's WebGPU, from npm's package `webgpu`. Dawn compiles and runs every variant
//! that a browser selects. The results are compared with the same references as in the native tests.
//!
//! On a software driver this is slow. The tests of `web.rs` run the same cases in a browser in a minute or two. Dawn needs a
//! newer Vulkan driver than Debian 12's, so a copy is unpacked in `target/`.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::{
    mesa::Mesa,
    programs::{PROGRAMS, cargo, program},
    setup,
    step::Steps,
};

/// The exported cases, from the root.
const CASES: &str = "target/dawn/cases";
/// The script and its package.
const FOLDER: &str = "webgpu-kernels/tests/dawn";
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

/// The system's driver if Dawn accepts it, else our copy of a newer one.
fn driver(steps: &mut Steps, root: &Path) -> Result<Driver> {
    let works = |driver: &Driver| {
        let output = node(root, driver).arg("--probe").output();
        output.is_ok_and(|output| output.status.success())
    };
    let of_system = Driver::new();
    if works(&of_system) {
        return Ok(of_system);
    }
    let mesa = Mesa::of(root);
    let ours: Driver = vec![("VK_DRIVER_FILES", mesa.lavapipe()), ("LD_LIBRARY_PATH", mesa.libraries())];
    mesa.fetch(steps).context("Dawn accepts no Vulkan driver of this system, and a newer one cannot be fetched")?;
    ensure!(
        works(&ours),
        "Dawn accepts neither a Vulkan driver of this system nor the newer `{}`",
        mesa.lavapipe().display()
    );
    Ok(ours)
}

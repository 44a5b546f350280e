//! The kernels in Chrome's WebGPU without Chrome: every variant that a browser would see is compiled and run by Dawn, from
//! npm's package `webgpu`, and compared with the same references as natively. On a software driver that is for the patient;
//! the tests of `web.rs` run the same cases in a browser, whose software GPU compiles them in a minute or two.
//!
//! Dawn wants a Vulkan driver newer than Debian 12's; there it is unpacked beside the system.

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

/// What Dawn is told to run, from the root.
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
    let mesa = Mesa::of(root);
    let ours: Driver = vec![("VK_DRIVER_FILES", mesa.lavapipe()), ("LD_LIBRARY_PATH", mesa.libraries())];
    mesa.fetch(steps).context("Dawn takes no Vulkan driver of this system, and a newer one cannot be had")?;
    ensure!(
        works(&ours),
        "Dawn takes neither a Vulkan driver of this system nor the newer `{}`",
        mesa.lavapipe().display()
    );
    Ok(ours)
}

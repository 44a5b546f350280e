//! The kernels through the compilers of GPUs that are not here, and what a cost model predicts of them: fetches the compilers,
//! and runs the program `hardware-check`, which says what is covered.

use std::{path::Path, process::Command};

use anyhow::{Context, Result};

use crate::{
    mesa::Mesa,
    programs::{PROGRAMS, cargo, program},
    setup,
    step::{Interrupted, Steps},
    wheel::Wheel,
};

/// DXC's library for Linux. The wheel is for Python 3.11, which is not needed to unpack it.
const DXC: Wheel = Wheel {
    package: "compushady-lrtu",
    version: "0.18.0",
    sha256: "b76371972f2543a1e83034a86c83cfad678dabf66be0b50b7d78edbcb1c98243",
    selection: &["--python-version=3.11", "--implementation=cp", "--abi=cp311", "--platform=manylinux_2_28_x86_64"],
    member: "compushady/backends/libdxcompiler_x86_64.so",
};
/// What the cost model chooses is written to.
const PRESETS: &str = "webgpu-kernels/src/tuning/presets.json";

/// How to run it.
#[derive(clap::Args)]
pub struct Options {
    /// Choose the presets of the modeled devices anew and write them to presets.json
    #[arg(long)]
    presets: bool,
    /// List every variant with its registers
    #[arg(long)]
    all: bool,
    /// Only this device; may be given again
    #[arg(long, value_name = "NAME")]
    device: Vec<String>,
}

/// Compiles the program, fetches what it needs, and runs it: `cargo xtask hardware`.
pub fn run(root: &Path, options: &Options) -> Result<()> {
    let mut steps = Steps::new()?;
    setup::vulkan()?;
    steps.run("compile the programs", &mut cargo(root, PROGRAMS))?;
    let mut command = command(&mut steps, root)?;
    command.args(options.all.then_some("--all"));
    command.args(options.device.iter().flat_map(|name| ["--device", name]));
    if options.presets {
        let commit = Command::new("git").args(["rev-parse", "--short", "HEAD"]).current_dir(root).output();
        let commit = commit.context("cannot run `git`")?.stdout;
        command.args(["--presets", PRESETS, "--commit", String::from_utf8_lossy(&commit).trim()]);
    }
    steps.run("kernels on GPUs that are not here", &mut command)
}

/// The program with the compilers that can be had; what cannot be fetched is skipped with a warning.
pub fn command(steps: &mut Steps, root: &Path) -> Result<Command> {
    let mut command = program(root, "hardware-check");
    command.arg("--json").arg(root.join("target/hardware.json"));
    let mesa = Mesa::of(root);
    if may_be_had(mesa.fetch(steps))?.is_some() {
        command.arg("--radv").arg(mesa.radv()).arg("--libraries").arg(mesa.libraries());
    }
    if let Some(dxc) = may_be_had(DXC.fetch(steps, &root.join("target").join("tools")))? {
        command.arg("--dxc").arg(dxc);
    }
    Ok(command)
}

/// Without a network this is skipped; whoever stopped it stopped all.
fn may_be_had<T>(fetched: Result<T>) -> Result<Option<T>> {
    match fetched {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.is::<Interrupted>() => Err(error),
        Err(error) => {
            eprintln!("warning: {error:#}; what needs it is skipped");
            Ok(None)
        }
    }
}

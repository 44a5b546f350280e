//! `cargo xtask hardware`: fetches compilers for absent GPUs and runs the program `hardware-check`. It compiles every kernel
//! with them and predicts a model's speed. Its output lists the covered devices.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{
    mesa::Mesa,
    programs::{PROGRAMS, cargo, program},
    setup,
    step::{Steps, optional},
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
/// The file for the presets that the cost model chooses.
const PRESETS: &str = "webgpu-kernels/src/tuning/presets.json";

/// Options of the command.
#[derive(clap::Args)]
pub struct Options {
    /// Choose the presets of the modeled devices anew and write them to presets.json
    #[arg(long)]
    presets: bool,
    /// List every variant with its registers
    #[arg(long)]
    all: bool,
    /// Only this device. Repeat the option for several
    #[arg(long, value_name = "NAME")]
    device: Vec<String>,
}

/// Compiles the program, fetches the compilers, and runs it.
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
    steps.run("kernels on absent GPUs", &mut command)
}

/// The program with all compilers that could be fetched.
pub fn command(steps: &mut Steps, root: &Path) -> Result<Command> {
    let mut command = program(root, "hardware-check");
    command.arg("--json").arg(root.join("target/hardware.json"));
    let (mesa, dxc) = fetch(steps, root)?;
    if let Some(mesa) = mesa {
        command.arg("--radv").arg(mesa.radv()).arg("--libraries").arg(mesa.libraries());
    }
    if let Some(dxc) = dxc {
        command.arg("--dxc").arg(dxc);
    }
    Ok(command)
}

/// The compilers: RADV and DXC.
pub fn fetch(steps: &mut Steps, root: &Path) -> Result<(Option<Mesa>, Option<PathBuf>)> {
    let mesa = Mesa::of(root);
    let fetched = mesa.fetch(steps);
    let mesa = optional(fetched, "no kernel is compiled for AMD", None)?.map(|()| mesa);
    let dxc = DXC.fetch(steps, &root.join("target").join("tools"));
    Ok((mesa, optional(dxc, "no kernel is compiled for Direct3D 12", None)?))
}

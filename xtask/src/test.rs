//! `cargo xtask test`: everything a change must pass. The repository's checks call this and nothing else.

use std::{env, path::Path, process::Command};

use anyhow::{Result, bail};

use crate::{
    hardware, linters,
    programs::{PROGRAMS, cargo, program},
    setup,
    step::{Interrupted, Steps},
    tidy, web,
};

/// Runs every check, goes on after one that fails, and fails at the end if any did.
///
/// All of them build the release profile, the one that the programs run in: build scripts and macros are compiled once.
pub fn run(root: &Path) -> Result<()> {
    let mut steps = Steps::new()?;
    let has_gpu = setup::vulkan()?;
    let mut tests = cargo(root, "test --release --workspace --no-fail-fast");
    if has_gpu && env::var_os("REQUIRE_GPU").is_none() {
        // A test that finds no device where there is one has failed; elsewhere it says why it is skipped.
        tests.env("REQUIRE_GPU", "1");
    }
    let mut failed: Vec<String> = Vec::new();
    if let Err(error) = tidy::run(root) {
        failed.push(format!("tidy: {error:#}"));
    }
    linters::check(&mut steps, &mut failed, root)?;
    check(&mut steps, &mut failed, "formatting", &mut cargo(root, "fmt --all -- --check"))?;
    let clippy = "clippy --release --workspace --all-targets -- -D warnings";
    check(&mut steps, &mut failed, "clippy", &mut cargo(root, clippy))?;
    // The programs whose names are no library's; with the examples for the reason that PROGRAMS has.
    let documentation =
        "doc --release --workspace --no-deps --lib --examples --bin xtask --bin web-bindgen --bin fetch-demo-weights";
    let mut documentation = cargo(root, documentation);
    check(&mut steps, &mut failed, "documentation", documentation.env("RUSTDOCFLAGS", "-D warnings"))?;
    check(&mut steps, &mut failed, "compile", &mut cargo(root, &format!("{PROGRAMS} --tests")))?;
    // A test that finds no model though it was fetched has failed; elsewhere it says why it is skipped.
    match steps.run("fetch the demo model's weights", &mut program(root, "fetch-demo-weights")) {
        Err(error) if error.is::<Interrupted>() => return Err(error),
        Err(error) => eprintln!("warning: {error:#}; the tests that need them are skipped"),
        Ok(()) => {
            tests.env("REQUIRE_DEMO_MODEL", "1");
        }
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
    check(&mut steps, &mut failed, "kernels on other GPUs", &mut hardware)?;
    check(&mut steps, &mut failed, "tests", &mut tests)?;
    check(&mut steps, &mut failed, "subgroups of 4", &mut subgroups_of_4(root))?;
    match web::test(&mut steps, root, page) {
        Err(error) if error.is::<Interrupted>() => return Err(error),
        Err(error) => failed.push(format!("the page: {error:#}")),
        Ok(()) => {}
    }
    eprintln!();
    for taken in &steps.taken {
        eprintln!("{:<30} {}", taken.title, crate::step::seconds(taken.time));
    }
    match failed.as_slice() {
        [] => Ok(()),
        failed => bail!("failed:\n  {}", failed.join("\n  ")),
    }
}

/// Runs one of the checks and notes whether it failed; an error is that the user stopped it.
fn check(steps: &mut Steps, failed: &mut Vec<String>, title: &str, command: &mut Command) -> Result<()> {
    match steps.run(title, command) {
        Err(error) if error.is::<Interrupted>() => Err(error),
        Err(error) => {
            failed.push(format!("{title}: {error:#}"));
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

fn subgroups_of_4(root: &Path) -> Command {
    let tests = "test --release --workspace --test kernels_match_reference --test golden -- with_all with_the_kernels \
                 near_the_cpus";
    let mut command = cargo(root, tests);
    // To lavapipe; other devices have what they have.
    command.env("LP_NATIVE_VECTOR_WIDTH", "128");
    if setup::has_only_lavapipe() {
        command.env("SUBGROUP_SIZE", "4");
    }
    command
}

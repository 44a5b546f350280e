//! `cargo xtask test`: everything a change must pass. The repository's checks call this and nothing else.

use std::{env, path::Path, process::Command};

use anyhow::{Result, bail};

use crate::{
    dawn, setup,
    step::{Interrupted, Steps},
    tidy, web,
};

/// Runs every check, goes on after one that fails, and fails at the end if any did.
///
/// All of them build the release profile, the one that the programs run in: build scripts and macros are compiled once.
pub fn run(root: &Path) -> Result<()> {
    let mut steps = Steps::new()?;
    let has_gpu = setup::vulkan()?;
    let cargo = |words: &str| {
        let mut command = Command::new("cargo");
        command.args(words.split(' ')).current_dir(root);
        command
    };
    let mut tests = cargo("test --release --workspace --no-fail-fast");
    if has_gpu && env::var_os("REQUIRE_GPU").is_none() {
        // A test that finds no device where there is one has failed; elsewhere it says why it is skipped.
        tests.env("REQUIRE_GPU", "1");
    }
    // A test that finds no model though it was fetched has failed; elsewhere it says why it is skipped.
    let mut fetch = cargo("run --release --package benches --bin fetch-demo-weights");
    match steps.run("fetch the demo model's weights", &mut fetch) {
        Err(error) if error.is::<Interrupted>() => return Err(error),
        Err(error) => eprintln!("warning: {error:#}; the tests that need them are skipped"),
        Ok(()) => {
            tests.env("REQUIRE_DEMO_MODEL", "1");
        }
    }
    let checks = [
        ("formatting", cargo("fmt --all -- --check")),
        ("clippy", cargo("clippy --release --workspace --all-targets -- -D warnings")),
        ("documentation", {
            let mut command = cargo("doc --release --workspace --no-deps");
            command.env("RUSTDOCFLAGS", "-D warnings");
            command
        }),
        ("tests", tests),
        ("subgroups of 4", {
            let mut command = cargo("test --release -p webgpu-kernels -p infer-core --test kernels_match_reference");
            command.args(["--test", "golden", "--", "with_all", "with_the_kernels", "near_the_cpus"]);
            // To lavapipe; other devices have what they have.
            command.env("LP_NATIVE_VECTOR_WIDTH", "128");
            if setup::has_only_lavapipe() {
                command.env("SUBGROUP_SIZE", "4");
            }
            command
        }),
    ];
    let mut failed: Vec<String> = Vec::new();
    if let Err(error) = tidy::run(root) {
        failed.push(format!("tidy: {error:#}"));
    }
    for (title, mut command) in checks {
        match steps.run(title, &mut command) {
            Err(error) if error.is::<Interrupted>() => return Err(error),
            Err(error) => failed.push(format!("{title}: {error:#}")),
            Ok(()) => {}
        }
    }
    match dawn::test(&mut steps, root) {
        Err(error) if error.is::<Interrupted>() => return Err(error),
        Err(error) => failed.push(format!("kernels in Dawn: {error:#}")),
        Ok(()) => {}
    }
    match web::test(&mut steps, root) {
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

//! Tells the program which commit it is built from, where the source is a git checkout: `bench` says so beside its figures.
//! `BUILD_COMMIT` says it where the source is a copy of one.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-env-changed=BUILD_COMMIT");
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
        Some(String::from_utf8(output.stdout).ok()?.trim().to_string())
    };
    let named = std::env::var("BUILD_COMMIT").ok().filter(|commit| !commit.is_empty());
    if let Some(commit) = named.or_else(|| git(&["rev-parse", "--short=7", "HEAD"])) {
        println!("cargo::rustc-env=BUILD_COMMIT={commit}");
    }
    match git(&["rev-parse", "--git-path", "logs/HEAD"]) {
        Some(path) => println!("cargo::rerun-if-changed={path}"),
        None => println!("cargo::rerun-if-changed=build.rs"),
    }
}

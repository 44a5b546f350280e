//! The programs that steps run, and the command that builds them.

use std::{env, path::Path, process::Command};

/// Builds the programs and examples of all crates, for every step that runs one.
///
/// It always builds all crates, with examples, because examples use dev-dependencies. Then dependencies have the same
/// features in every step and are compiled once. For a single crate cargo would select other features and compile them
/// again. xtask itself is running, so it is excluded.
pub const PROGRAMS: &str = "build --release --workspace --exclude xtask --bins --examples";

/// Builds the programs of the demo and nothing else. Some dependencies (`naga`) have fewer features than with
/// [`PROGRAMS`], which compiles them again.
pub const DEMO_PROGRAMS: &str =
    "build --release --package chat-cli --package gptq-quant --package weight-convert --bins";

/// `cargo` with these words, in the root.
///
/// It does not inherit the variables that `cargo run` sets for the package xtask. The build script of `ring` reads them, so
/// cargo would compile ring and its dependents again after each change between a shell and xtask.
pub fn cargo(root: &Path, words: &str) -> Command {
    let mut command = Command::new("cargo");
    command.args(words.split(' ')).current_dir(root);
    for (name, _) in env::vars_os() {
        if ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    command
}

/// One of [`PROGRAMS`].
pub fn program(root: &Path, name: &str) -> Command {
    let mut command = Command::new(root.join("target/release").join(name));
    command.current_dir(root);
    command
}

//! The programs that steps run, and what they are built by.

use std::{path::Path, process::Command};

/// What the programs and examples of all crates are built with, for every step that runs one.
///
/// Always of all crates, and with an example, which wants what tests want: so the crates we depend on have the same features
/// in every step, those of the tests, and are compiled once. For one crate alone cargo would choose others, and compile
/// them again. This program itself runs already.
pub const PROGRAMS: &str = "build --release --workspace --exclude xtask --bins --examples";

/// `cargo` with these words, in the root.
pub fn cargo(root: &Path, words: &str) -> Command {
    let mut command = Command::new("cargo");
    command.args(words.split(' ')).current_dir(root);
    command
}

/// One of [`PROGRAMS`].
pub fn program(root: &Path, name: &str) -> Command {
    let mut command = Command::new(root.join("target/release").join(name));
    command.current_dir(root);
    command
}

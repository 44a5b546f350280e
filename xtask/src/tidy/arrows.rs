//! Allowed imports, and the owner of each external dependency. A new arrow is a change to these tables and to
//! ARCHITECTURE.md, in a commit of its own.

use std::{path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{
    Finding,
    tree::{Part, SHARED_BY_BINARIES, Tree},
    words::find_word,
};

/// Reason of the rule.
pub const WHY: &str = "who may import whom, and who owns what from outside, is a table in xtask/src/tidy/arrows.rs";

/// One crate of ours.
struct Crate {
    name: &'static str,
    /// Crates of ours that it may import.
    imports: &'static [&'static str],
    /// Crates of ours that only its binary may import.
    binary_imports: &'static [&'static str],
}

/// The arrows.
const CRATES: &[Crate] = &[
    Crate { name: "model-format", imports: &[], binary_imports: &[] },
    Crate { name: "webgpu-kernels", imports: &["model-format"], binary_imports: &[] },
    Crate { name: "infer-core", imports: &["model-format", "webgpu-kernels"], binary_imports: &[] },
    Crate { name: "model-hub", imports: &["model-format"], binary_imports: &[] },
    Crate { name: "calib-data", imports: &["model-format", "model-hub"], binary_imports: &[] },
    Crate {
        name: "gptq-quant",
        imports: &["model-format", "model-hub", "infer-core", "calib-data"],
        binary_imports: &["weight-convert", "command-line"],
    },
    Crate { name: "weight-convert", imports: &["model-format", "model-hub"], binary_imports: &["command-line"] },
    Crate {
        name: "chat-cli",
        imports: &["model-format", "model-hub", "infer-core"],
        binary_imports: &["calib-data", "command-line"],
    },
    // Shared by the programs; no library may import it.
    Crate { name: "command-line", imports: &["model-format", "model-hub"], binary_imports: &[] },
    // Builds web-chat for browsers.
    Crate { name: "web-bindgen", imports: &[], binary_imports: &[] },
    Crate { name: "web-chat", imports: &["model-format", "infer-core"], binary_imports: &[] },
    Crate {
        name: "benches",
        imports: &[
            "model-format",
            "webgpu-kernels",
            "infer-core",
            "model-hub",
            "calib-data",
            "gptq-quant",
            "weight-convert",
            "chat-cli",
            "command-line",
        ],
        binary_imports: &[],
    },
    // Kernels through the compilers of GPUs that are not here.
    Crate { name: "hardware-check", imports: &["model-format", "webgpu-kernels", "infer-core"], binary_imports: &[] },
    Crate { name: "xtask", imports: &[], binary_imports: &[] },
];

/// The crates that may use an external dependency.
enum Owner {
    /// Plain vocabulary: numbers, bytes, text formats, errors, temporary files.
    Anyone,
    /// These crates alone.
    Only(&'static [&'static str]),
    /// Crates with a binary, and only from its files.
    Binaries,
    /// Tests and benches.
    Tests,
}

/// Every external dependency.
const OUTSIDE: &[(&str, Owner)] = &[
    ("bytemuck", Owner::Anyone),
    ("half", Owner::Anyone),
    ("serde", Owner::Anyone),
    ("serde_json", Owner::Anyone),
    ("thiserror", Owner::Anyone),
    ("tempfile", Owner::Anyone),
    ("rand", Owner::Only(&["infer-core", "calib-data"])),
    ("rand_chacha", Owner::Only(&["infer-core", "calib-data"])),
    // Data sets: their records, and gzip around text.
    ("parquet", Owner::Only(&["calib-data"])),
    ("flate2", Owner::Only(&["calib-data"])),
    ("memmap2", Owner::Only(&["model-format"])),
    ("safetensors", Owner::Only(&["model-format"])),
    ("fs4", Owner::Only(&["gptq-quant"])),
    // Advice to the kernel about memory.
    ("libc", Owner::Only(&["command-line"])),
    ("md-5", Owner::Only(&["model-format"])),
    ("fancy-regex", Owner::Only(&["model-format"])),
    ("hf-hub", Owner::Only(&["model-hub"])),
    ("ureq", Owner::Only(&["model-hub"])),
    ("sha1", Owner::Only(&["model-hub"])),
    ("sha2", Owner::Only(&["model-hub"])),
    // Wheels of Python packages.
    ("zip", Owner::Only(&["model-hub"])),
    // The tensors of the reference, and the reader of GGUF.
    ("candle-core", Owner::Only(&["infer-core", "model-hub"])),
    ("candle-nn", Owner::Only(&["infer-core"])),
    ("tokenizers", Owner::Only(&["infer-core"])),
    // Chat templates, and the page of a report.
    ("minijinja", Owner::Only(&["infer-core", "gptq-quant"])),
    ("minijinja-contrib", Owner::Only(&["infer-core"])),
    // hardware-check asks drivers what wgpu does not ask.
    ("wgpu", Owner::Only(&["webgpu-kernels", "hardware-check"])),
    ("naga", Owner::Only(&["webgpu-kernels", "hardware-check"])),
    ("ash", Owner::Only(&["webgpu-kernels", "hardware-check"])),
    ("libloading", Owner::Only(&["hardware-check"])),
    // A foreign executor, for tests.
    ("tokio", Owner::Tests),
    ("pollster", Owner::Only(&["webgpu-kernels"])),
    // The standard library's clock, and the browser's own there.
    ("web-time", Owner::Only(&["webgpu-kernels", "infer-core"])),
    ("wasm-bindgen", Owner::Only(&["web-chat"])),
    ("wasm-bindgen-futures", Owner::Only(&["web-chat"])),
    ("js-sys", Owner::Only(&["web-chat"])),
    ("getrandom", Owner::Only(&["web-chat"])),
    ("wasm-bindgen-cli-support", Owner::Only(&["web-bindgen"])),
    ("faer", Owner::Only(&["gptq-quant"])),
    ("ndarray", Owner::Only(&["gptq-quant"])),
    ("rayon", Owner::Only(&["gptq-quant", "infer-core", "weight-convert"])),
    ("anyhow", Owner::Binaries),
    ("clap", Owner::Binaries),
    ("ctrlc", Owner::Only(&["command-line"])),
    ("indicatif", Owner::Only(&["command-line"])),
    ("rustyline", Owner::Binaries),
    // The documents: their links, and the book.
    ("pulldown-cmark", Owner::Only(&["xtask"])),
    ("assert_cmd", Owner::Tests),
    ("criterion", Owner::Tests),
    ("insta", Owner::Tests),
    ("proptest", Owner::Tests),
];

/// A crate as its manifest declares it.
pub struct Package {
    name: String,
    has_binary: bool,
    /// Name; true if it is one of ours; true if it is for tests only.
    dependencies: Vec<(String, bool, bool)>,
}

/// The packages of the workspace, from cargo; needs no network and no lock file.
pub fn packages(root: &Path) -> Result<Vec<Package>> {
    let arguments = ["metadata", "--format-version=1", "--no-deps", "--offline"];
    let output = Command::new("cargo").args(arguments).current_dir(root).output().context("cannot run `cargo`")?;
    ensure!(output.status.success(), "`cargo metadata` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    let metadata: Value =
        serde_json::from_slice(&output.stdout).context("cannot read the output of `cargo metadata`")?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let packages = list(&metadata["packages"]);
    let package = |package: &Value| Package {
        name: text(&package["name"]),
        has_binary: list(&package["targets"]).iter().any(|target| target["kind"][0] == "bin"),
        dependencies: list(&package["dependencies"])
            .iter()
            .map(|it| (text(&it["name"]), it["path"].is_string(), it["kind"] == "dev"))
            .collect(),
    };
    Ok(packages.iter().map(package).collect())
}

/// Imports that the tables do not allow.
pub fn check(packages: &[Package], tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for package in packages {
        let Some(allowed) = CRATES.iter().find(|it| it.name == package.name) else {
            findings.push(Finding::of(&format!("{}/Cargo.toml", package.name), "this crate is not in the table"));
            continue;
        };
        for (name, ours, for_tests) in &package.dependencies {
            let complaint =
                if *ours { ours_complaint(allowed, name) } else { outside_complaint(package, name, *for_tests) };
            if let Some(complaint) = complaint {
                let manifest = format!("{}/Cargo.toml", package.name);
                let line = tree
                    .file(&manifest)
                    .and_then(|file| file.text.lines().position(|line| line.starts_with(name.as_str())));
                findings.push(Finding { path: manifest, line: line.unwrap_or(0) + 1, what: complaint });
            }
        }
        findings.extend(binary_words(allowed, tree));
    }
    findings
}

fn ours_complaint(allowed: &Crate, name: &str) -> Option<String> {
    let is_allowed = allowed.imports.contains(&name) || allowed.binary_imports.contains(&name);
    (!is_allowed).then(|| format!("`{}` may not import `{name}`", allowed.name))
}

fn outside_complaint(package: &Package, name: &str, for_tests: bool) -> Option<String> {
    match OUTSIDE.iter().find(|(it, _)| *it == name) {
        None => Some(format!("`{name}` has no owner in the table")),
        _ if for_tests => None,
        Some((_, Owner::Anyone)) => None,
        Some((_, Owner::Only(owners))) if owners.contains(&package.name.as_str()) => None,
        Some((_, Owner::Only(owners))) => Some(format!("`{name}` belongs to {}", owners.join(", "))),
        Some((_, Owner::Binaries)) if package.has_binary || SHARED_BY_BINARIES.contains(&package.name.as_str()) => None,
        Some((_, Owner::Binaries)) => Some(format!("`{name}` is for binaries, and this crate has none")),
        Some((_, Owner::Tests)) => Some(format!("`{name}` is for tests: list it under [dev-dependencies]")),
    }
}

/// Binary-only dependencies that a library uses.
fn binary_words(allowed: &Crate, tree: &Tree) -> Vec<Finding> {
    let outside = OUTSIDE.iter().filter(|(_, owner)| matches!(owner, Owner::Binaries)).map(|(name, _)| *name);
    let names: Vec<String> =
        outside.chain(allowed.binary_imports.iter().copied()).map(|it| it.replace('-', "_")).collect();
    let library = tree.rust().filter(|(file, _)| file.package() == allowed.name && file.part == Part::Library);
    let mut findings = Vec::new();
    for (file, source) in library {
        for name in &names {
            let offsets = find_word(&source.code, name).filter(|offset| !source.is_test(*offset));
            findings.extend(offsets.map(|offset| Finding::at(file, offset, format!("`{name}` is for binaries"))));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints(name: &str, has_binary: bool, dependency: (&str, bool, bool)) -> Vec<String> {
        let dependencies = vec![(dependency.0.to_string(), dependency.1, dependency.2)];
        let package = Package { name: name.into(), has_binary, dependencies };
        check(&[package], &Tree::new(Vec::new())).into_iter().map(|finding| finding.what).collect()
    }

    #[test]
    fn arrows_and_owners_are_checked() {
        let check = |name, has_binary, dependency, expected: &[&str]| {
            assert_eq!(complaints(name, has_binary, dependency), expected);
        };
        check("infer-core", false, ("model-format", true, false), &[]);
        check("model-format", false, ("infer-core", true, false), &["`model-format` may not import `infer-core`"]);
        check("infer-core", false, ("wgpu", false, false), &["`wgpu` belongs to webgpu-kernels, hardware-check"]);
        check("infer-core", false, ("wgpu", false, true), &[]);
        check("infer-core", false, ("clap", false, false), &["`clap` is for binaries, and this crate has none"]);
        check("gptq-quant", true, ("clap", false, false), &[]);
        check("gptq-quant", true, ("left-pad", false, false), &["`left-pad` has no owner in the table"]);
        check("left-pad", true, ("clap", false, false), &["this crate is not in the table"]);
    }

    #[test]
    fn library_does_not_use_what_its_binary_may() {
        let files = [
            ("gptq-quant/src/lib.rs", "fn f(x: weight_convert::Plan) {}"),
            ("gptq-quant/src/main.rs", "fn main() { weight_convert::convert(); }"),
        ];
        let tree = Tree::new(files.map(|(path, text)| (path.to_string(), text.to_string())).into());
        let package = Package { name: "gptq-quant".into(), has_binary: true, dependencies: Vec::new() };
        let places: Vec<String> = check(&[package], &tree).into_iter().map(|finding| finding.path).collect();
        assert_eq!(places, ["gptq-quant/src/lib.rs"]);
    }
}

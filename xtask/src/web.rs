//! `cargo xtask web`: builds the page of `web-chat`, serves it locally, and tests it in a real browser.
//!
//! cargo compiles the wasm, `web-bindgen` makes it loadable, and Vite bundles it with the page. `setup.rs` fetches missing
//! parts (the wasm target, the bundler's packages, a browser to test in). The tests are in `web-chat/tests/`.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result};

use crate::{
    programs::{PROGRAMS, cargo, program},
    setup,
    step::{Beside, Steps, optional},
};

/// Target of the wasm.
const TARGET: &str = "wasm32-unknown-unknown";
/// Output folder of the page's tests (models, screenshots), from the root.
const TEST_OUTPUT: &str = "target/web-test";
/// Cases of the kernels for the browser's GPU.
const CASES: &str = "target/web-test/cases";
/// Output of compiling the wasm.
const LOG: &str = "target/web-compile.log";
/// If this variable is set, a missing browser or Node.js is an error.
const REQUIRED: Option<&str> = Some("REQUIRE_BROWSER");
/// Folder of the demo model for the tests, if it could be fetched.
const DEMO_MODEL: &str = "target/web-test/models/SmolLM2-135M-Instruct-q4f16_1";

/// Options of the command.
#[derive(clap::Args)]
pub struct Options {
    /// Only build `web-chat/dist`, a folder of static files that any server can host, and `web-chat/package`
    #[arg(long)]
    build: bool,
    /// Only build, and run the tests in a browser, as `cargo xtask test` does
    #[arg(long, conflicts_with = "build")]
    test: bool,
    /// Local port of the page
    #[arg(long, default_value_t = 8080)]
    port: u16,
}

/// Builds the page and, unless only a build is wanted, serves it until Ctrl-C.
pub fn run(root: &Path, options: &Options) -> Result<()> {
    let mut steps = Steps::new()?;
    if options.test {
        let compiling = start(&mut steps, root)?;
        return test(&mut steps, root, compiling);
    }
    page(&mut steps, root)?;
    if options.build {
        eprintln!("\nThe page is `web-chat/dist/`, the package for apps `web-chat/package/`.");
        return Ok(());
    }
    eprintln!("\nThe page is at http://127.0.0.1:{}/ until Ctrl-C.", options.port);
    let port = options.port.to_string();
    // Not through npm, which would be ended without it.
    let mut serve = Command::new("node");
    serve.args(["node_modules/vite/bin/vite.js", "preview", "--host", "127.0.0.1", "--strictPort", "--port", &port]);
    steps.run("serve", serve.current_dir(root.join("web-chat")))
}

/// Builds `web-chat/dist` and `web-chat/package` from scratch.
pub fn page(steps: &mut Steps, root: &Path) -> Result<()> {
    fetch(steps, root)?;
    for (title, mut command) in compile(root) {
        steps.run(&title, &mut command)?;
    }
    build(steps, root)
}

/// Fetches the wasm target and the bundler's packages.
pub fn fetch(steps: &mut Steps, root: &Path) -> Result<()> {
    setup::wasm_target(steps, root, TARGET)?;
    setup::npm_packages(steps, &root.join("web-chat"))
}

/// Commands that lint and build the wasm.
fn compile(root: &Path) -> Vec<(String, Command)> {
    let clippy = format!("clippy --profile web --package web-chat --target {TARGET} -- -D warnings");
    let build = format!("build --profile web --package web-chat --target {TARGET}");
    vec![
        ("clippy for browsers".into(), cargo(root, &clippy)),
        ("compile the engine for browsers".into(), cargo(root, &build)),
    ]
}

/// Starts compiling the wasm in parallel with the next steps: its last crate uses one processor for more than a minute.
/// `None` if the page cannot be built.
pub fn start(steps: &mut Steps, root: &Path) -> Result<Option<Beside>> {
    match optional(fetch(steps, root), "the page is not built and not tested", REQUIRED)? {
        Some(()) => steps.beside(&root.join(LOG), compile(root)).map(Some),
        None => Ok(None),
    }
}

/// Builds `web-chat/dist` and `web-chat/package` from the wasm.
fn build(steps: &mut Steps, root: &Path) -> Result<()> {
    let wasm = format!("target/{TARGET}/web/web_chat.wasm");
    steps.run("compile the programs", &mut cargo(root, PROGRAMS))?;
    steps.run("make it loadable", program(root, "web-bindgen").args([&wasm, "web-chat/wasm"]))?;
    steps.run("bundle it with the page", npm(root).args(["run", "--silent", "build"]))
}

/// Builds the page and runs its tests in a browser.
///
/// If the demo model can be fetched, `weight-convert` converts it and `chat-cli` answers with it. The page's answers are
/// compared with these.
pub fn test(steps: &mut Steps, root: &Path, compiling: Option<Beside>) -> Result<()> {
    let Some(compiling) = compiling else { return Ok(()) };
    steps.join(compiling)?;
    build(steps, root)?;
    let browser = setup::browser(steps, &root.join("web-chat"));
    let Some(browser) = optional(browser, "the page is not tested", REQUIRED)? else { return Ok(()) };

    // Nothing that an earlier program converted.
    let output = root.join(TEST_OUTPUT);
    if output.exists() {
        fs::remove_dir_all(&output).with_context(|| format!("cannot remove `{}`", output.display()))?;
    }
    let mut tests = Command::new("node");
    // One browser at a time: a software GPU takes every core.
    tests.args(["--test", "--test-concurrency=1", "--test-reporter=spec"]).args(test_files(root)?).current_dir(root);
    tests.env("WEB_TEST_OUTPUT", TEST_OUTPUT);
    if let Some(browser) = browser {
        tests.env("CHROMIUM", browser);
    }
    if optional(demo_model(steps, root), "the page is tested with a tiny model only", None)?.is_some() {
        tests.env("WEB_TEST_DEMO_MODEL", DEMO_MODEL);
    }
    // Cases for the browser's software GPU. Its subgroups have four lanes, as lavapipe's do here.
    let mut export = program(root, "examples/export-cases");
    let exported = steps.run("cases of the kernels", export.arg(CASES).env("LP_NATIVE_VECTOR_WIDTH", "128"));
    if optional(exported, "the kernels do not run in the browser", None)?.is_some() {
        tests.env("WEB_TEST_CASES", CASES);
    }
    steps.run("tests in a browser", &mut tests)?;
    eprintln!("   screenshots are in `{TEST_OUTPUT}/screenshots/`");
    Ok(())
}

/// The test files one by one: versions of Node.js interpret a folder or a pattern differently.
fn test_files(root: &Path) -> Result<Vec<String>> {
    let folder = root.join("web-chat/tests");
    let entries = folder.read_dir().with_context(|| format!("cannot read `{}`", folder.display()))?;
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut files: Vec<String> =
        names.filter(|name| name.ends_with(".test.mjs")).map(|name| format!("web-chat/tests/{name}")).collect();
    files.sort();
    Ok(files)
}

fn demo_model(steps: &mut Steps, root: &Path) -> Result<()> {
    let mut convert = program(root, "weight-convert");
    convert.args(["convert", "demo", "--quantization", "q4f16_1", "-o", DEMO_MODEL]);
    steps.run("convert the demo model", &mut convert).context("the demo model cannot be fetched")
}

fn npm(root: &Path) -> Command {
    let mut npm = Command::new(setup::NPM);
    npm.current_dir(root.join("web-chat"));
    npm
}

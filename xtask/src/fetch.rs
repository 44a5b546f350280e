//! `cargo xtask fetch`: fetches everything that `cargo xtask test` needs beyond Rust's crates: a Vulkan driver, linters,
//! compilers for absent GPUs, the wasm target, npm packages, a browser.
//!
//! `cargo xtask test` runs it in parallel with its first compilation. A failure here is a warning: the step that needs the
//! part reports it.

use std::path::Path;

use anyhow::Result;

use crate::{
    hardware, linters, setup,
    step::{Steps, optional},
    web,
};

/// Fetches all parts, also after one that fails.
pub fn run(root: &Path) -> Result<()> {
    let mut steps = Steps::new()?;
    optional(setup::vulkan(), "kernels will not be tested", None)?;
    optional(linters::fetch(&mut steps, root), "some linters will not run", None)?;
    hardware::fetch(&mut steps, root)?;
    let page = web::fetch(&mut steps, root).and_then(|()| setup::browser(&mut steps, &root.join("web-chat")));
    optional(page, "the page will not be tested", None)?;
    Ok(())
}

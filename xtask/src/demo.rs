//! demo
use anyhow::Result;
use std::path::Path;

/// Options of the demo.
#[derive(clap::Args)]
pub struct Options {}

/// run
pub fn run(_root: &Path, _options: &Options) -> Result<()> {
    let _ = crate::setup::is_software_only;
    Ok(())
}

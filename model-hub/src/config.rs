//! [`HubConfig`]: which hub, with which token, kept where.

use std::path::PathBuf;

use crate::Result;

/// Which hub is asked, as whom, and where its files are kept.
#[derive(Clone)]
pub struct HubConfig {
    /// The folder of everything that is kept (`HF_HOME`). Files that do not come from the hub lie in `wheels/` below.
    pub home: PathBuf,
    /// The hub's cache, in the layout that all its tools share (`HF_HUB_CACHE`).
    pub cache_dir: PathBuf,
    /// The user's token for private and gated repositories (`HF_TOKEN`, or the file at `HF_TOKEN_PATH`).
    pub token: Option<String>,
    /// Scheme and host of the hub, no slash at the end (`HF_ENDPOINT`).
    pub endpoint: String,
    /// Whether only the cache may be used (`HF_HUB_OFFLINE`).
    pub offline: bool,
}

impl HubConfig {
    /// The configuration that the hub's own tools would read from these variables.
    ///
    /// Binaries pass `|name| std::env::var(name).ok()`. Reads the token's file where no variable holds the token.
    pub fn from_vars(var: impl Fn(&str) -> Option<String>) -> Result<HubConfig> {
        let _ = var;
        todo!()
    }
}

impl std::fmt::Debug for HubConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HubConfig").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

//! [`HubConfig`]: address, token, proxy, time limits and cache folder of the hub.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::{Error, Result};

/// Settings for access to the hub and for the local cache.
#[derive(Clone, PartialEq, Eq)]
pub struct HubConfig {
    /// Folder for all downloads (`HF_HOME`). Its `wheels/` has files from the Python package index.
    pub home: PathBuf,
    /// The hub's cache, in the layout that all hub tools share (`HF_HUB_CACHE`).
    pub cache_dir: PathBuf,
    /// The user's token for private and gated repositories (`HF_TOKEN`, or the file at `HF_TOKEN_PATH`).
    pub token: Option<String>,
    /// Scheme and host of the hub, without a trailing slash (`HF_ENDPOINT`).
    pub endpoint: String,
    /// True to use the cache only, without network access (`HF_HUB_OFFLINE`).
    pub offline: bool,
    /// Proxy address (`HTTPS_PROXY`, or `HTTP_PROXY` for a plain http endpoint; else `ALL_PROXY`).
    pub proxy: Option<String>,
    /// Hosts to reach without the proxy, separated by commas (`NO_PROXY`).
    pub no_proxy: Option<String>,
    /// Time limit for the hub's first response. After it the hub is unreachable. Default: 10 seconds.
    pub reach_timeout: Duration,
    /// Time without data after which a transfer is retried. Default: 60 seconds.
    pub stall_timeout: Duration,
    /// Delay before the first retry, doubled for each further one. Default: 1 second.
    pub retry_delay: Duration,
}

impl HubConfig {
    /// The default configuration, with all downloads below `home`.
    pub fn new(home: impl Into<PathBuf>) -> HubConfig {
        let home = home.into();
        HubConfig {
            cache_dir: home.join("hub"),
            home,
            token: None,
            endpoint: "https://huggingface.co".into(),
            offline: false,
            proxy: None,
            no_proxy: None,
            reach_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(60),
            retry_delay: Duration::from_secs(1),
        }
    }

    /// Reads the variables of the hub's own tools. Without a token variable, reads the token file.
    ///
    /// Binaries pass `|name| std::env::var(name).ok()`.
    ///
    /// # Errors
    ///
    /// [`Error::BadVariable`] for an invalid endpoint or token, or if neither `HF_HOME` nor a home folder is set.
    pub fn from_vars(var: impl Fn(&str) -> Option<String>) -> Result<HubConfig> {
        let var = |name: &str| var(name).filter(|value| !value.trim().is_empty());
        let first = |names: &[&str]| names.iter().find_map(|name| var(name));
        let user_home = first(&["HOME", "USERPROFILE"]).map(PathBuf::from);
        let expand = |path: String| match (path.strip_prefix('~'), &user_home) {
            (Some(rest), Some(home)) if rest.is_empty() || rest.starts_with(['/', '\\']) => {
                home.join(rest.trim_start_matches(['/', '\\']))
            }
            _ => PathBuf::from(path),
        };

        let cache_root = || match (var("XDG_CACHE_HOME"), &user_home) {
            (Some(path), _) => Ok(expand(path)),
            (None, Some(home)) => Ok(home.join(".cache")),
            (None, None) => {
                Err(Error::BadVariable { name: "HF_HOME", expected: "set if HOME is unset", found: "nothing".into() })
            }
        };
        let home = match var("HF_HOME") {
            Some(path) => expand(path),
            None => cache_root()?.join("huggingface"),
        };
        let mut config = HubConfig::new(home);

        // The second names are older. The hub's tools still read them.
        if let Some(path) = first(&["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"]) {
            config.cache_dir = expand(path);
        }
        config.token = match first(&["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]) {
            Some(token) => Some(checked_token("HF_TOKEN", &token)?),
            None => {
                let path = var("HF_TOKEN_PATH").map_or_else(|| config.home.join("token"), expand);
                token_from(&path)?
            }
        };
        if let Some(endpoint) = var("HF_ENDPOINT") {
            config.endpoint = checked_endpoint(&endpoint)?;
        }
        config.offline = first(&["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"]).is_some_and(|value| is_true(&value));
        config.proxy = if config.endpoint.starts_with("https://") {
            first(&["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"])
        } else {
            first(&["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
        };
        config.no_proxy = first(&["NO_PROXY", "no_proxy"]);
        Ok(config)
    }
}

/// Hides the token, and the proxy address because it may contain a password.
impl std::fmt::Debug for HubConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HubConfig")
            .field("home", &self.home)
            .field("cache_dir", &self.cache_dir)
            .field("endpoint", &self.endpoint)
            .field("offline", &self.offline)
            .field("has_token", &self.token.is_some())
            .field("has_proxy", &self.proxy.is_some())
            .finish_non_exhaustive()
    }
}

/// True for the values that the hub's tools treat as true.
fn is_true(value: &str) -> bool {
    ["1", "on", "yes", "true"].iter().any(|word| value.trim().eq_ignore_ascii_case(word))
}

/// Trims a token and rejects control characters, which could inject another HTTP header.
fn checked_token(name: &'static str, token: &str) -> Result<String> {
    let token = token.trim();
    if token.bytes().all(|b| b.is_ascii_graphic()) {
        return Ok(token.into());
    }
    let found = "another value (hidden, a secret)".into();
    Err(Error::BadVariable { name, expected: "a token of visible ASCII characters", found })
}

/// The token in a file. `None` if the file is missing or empty.
fn token_from(path: &Path) -> Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) if text.trim().is_empty() => Ok(None),
        Ok(text) => checked_token("HF_TOKEN_PATH", &text).map(Some),
        Err(_) => Ok(None),
    }
}

fn checked_endpoint(endpoint: &str) -> Result<String> {
    let endpoint = endpoint.trim().trim_end_matches('/');
    let uri = endpoint.parse::<ureq::http::Uri>().ok();
    let sound = uri.as_ref().is_some_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https")) && uri.authority().is_some() && uri.query().is_none()
    });
    if sound && !endpoint.contains('@') {
        return Ok(endpoint.into());
    }
    let expected = "an address like `https://huggingface.co`";
    Err(Error::BadVariable { name: "HF_ENDPOINT", expected, found: format!("{endpoint:?}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The configuration from `HOME=/h` and `vars`.
    fn from(vars: &[(&str, &str)]) -> Result<HubConfig> {
        HubConfig::from_vars(|name| {
            let found = vars.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string());
            found.or_else(|| (name == "HOME").then(|| "/h".into()))
        })
    }

    #[test]
    fn each_variable_sets_its_field() {
        let default = HubConfig::new("/h/.cache/huggingface");
        assert_eq!(from(&[]).unwrap(), default);
        assert_eq!(default.cache_dir, Path::new("/h/.cache/huggingface/hub"));

        type Change = fn(&mut HubConfig);
        let cases: &[(&[(&str, &str)], Change)] = &[
            (&[("HF_HOME", "/m")], |c| *c = HubConfig::new("/m")),
            (&[("HF_HOME", "~/m")], |c| *c = HubConfig::new("/h/m")),
            (&[("HF_HOME", "")], |_| ()),
            (&[("XDG_CACHE_HOME", "/x")], |c| *c = HubConfig::new("/x/huggingface")),
            (&[("XDG_CACHE_HOME", "/x"), ("HF_HOME", "/m")], |c| *c = HubConfig::new("/m")),
            (&[("HF_HUB_CACHE", "/c")], |c| c.cache_dir = "/c".into()),
            (&[("HUGGINGFACE_HUB_CACHE", "/c")], |c| c.cache_dir = "/c".into()),
            (&[("HF_HUB_CACHE", "/c"), ("HUGGINGFACE_HUB_CACHE", "/d")], |c| c.cache_dir = "/c".into()),
            (&[("HF_TOKEN", " hf_abc\n")], |c| c.token = Some("hf_abc".into())),
            (&[("HUGGING_FACE_HUB_TOKEN", "hf_old")], |c| c.token = Some("hf_old".into())),
            (&[("HF_TOKEN", "")], |_| ()),
            (&[("HF_ENDPOINT", "https://mirror.example/hf/")], |c| c.endpoint = "https://mirror.example/hf".into()),
            (&[("HF_HUB_OFFLINE", "1")], |c| c.offline = true),
            (&[("HF_HUB_OFFLINE", "Yes")], |c| c.offline = true),
            (&[("HF_HUB_OFFLINE", "TRUE")], |c| c.offline = true),
            (&[("HF_HUB_OFFLINE", "0")], |_| ()),
            (&[("TRANSFORMERS_OFFLINE", "1")], |c| c.offline = true),
            (&[("HTTPS_PROXY", "http://p:1")], |c| c.proxy = Some("http://p:1".into())),
            (&[("https_proxy", "http://p:1")], |c| c.proxy = Some("http://p:1".into())),
            (&[("ALL_PROXY", "http://p:1")], |c| c.proxy = Some("http://p:1".into())),
            (&[("HTTP_PROXY", "http://p:1")], |_| ()),
            (&[("HTTP_PROXY", "http://p:1"), ("HF_ENDPOINT", "http://m")], |c| {
                c.endpoint = "http://m".into();
                c.proxy = Some("http://p:1".into());
            }),
            (&[("NO_PROXY", "a,b")], |c| c.no_proxy = Some("a,b".into())),
        ];
        for (vars, change) in cases {
            let mut expected = default.clone();
            change(&mut expected);
            assert_eq!(from(vars).unwrap(), expected, "{vars:?}");
        }
    }

    #[test]
    fn the_token_file_is_read_without_a_token_variable() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().to_str().unwrap();
        std::fs::write(folder.path().join("token"), "hf_file\n").unwrap();
        std::fs::write(folder.path().join("other"), "hf_other").unwrap();
        let other = format!("{home}/other");
        let token = |vars: &[(&str, &str)]| from(vars).unwrap().token;
        assert_eq!(token(&[("HF_HOME", home)]).as_deref(), Some("hf_file"));
        assert_eq!(token(&[("HF_HOME", home), ("HF_TOKEN_PATH", &other)]).as_deref(), Some("hf_other"));
        assert_eq!(token(&[("HF_HOME", home), ("HF_TOKEN", "hf_var")]).as_deref(), Some("hf_var"));
        assert_eq!(token(&[("HF_TOKEN_PATH", "/not/there")]), None);
    }

    #[test]
    fn invalid_values_are_rejected_and_secrets_hidden() {
        for (name, value) in [
            ("HF_ENDPOINT", "huggingface.co"),
            ("HF_ENDPOINT", "ftp://huggingface.co"),
            ("HF_ENDPOINT", "https://user:pw@huggingface.co"),
            ("HF_TOKEN", "hf_abc\r\nX-Other: secret"),
        ] {
            let error = from(&[(name, value)]).unwrap_err();
            assert!(error.to_string().contains(name) && error.hint().unwrap().contains(name), "{error}");
            assert!(!error.to_string().contains("secret\""), "{error}");
        }
        assert!(HubConfig::from_vars(|_| None).unwrap_err().to_string().contains("HF_HOME"));
        let config = from(&[("HF_TOKEN", "hf_abc"), ("HTTPS_PROXY", "http://u:pw@p:1")]).unwrap();
        let shown = format!("{config:?}");
        assert!(!shown.contains("hf_abc") && !shown.contains("pw"), "{shown}");
    }
}

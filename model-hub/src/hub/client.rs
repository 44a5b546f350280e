//! Requests to the hub: redirects without leaking the token, time limits, retries, and errors from status codes.

use std::thread::sleep;
use std::time::{Duration, Instant};

use hf_hub::api::RepoInfo;
use ureq::http::{HeaderMap, Response, StatusCode, Uri};
use ureq::{Agent, Body, Proxy};

use super::{RepoName, is_hex};
use crate::{Error, HubConfig, Progress, Result};

/// Maximum number of redirects of one request.
const MAX_REDIRECTS: usize = 10;
/// Maximum size of a repository's file list, in bytes.
const MAX_INFO: u64 = 64 << 20;

/// An HTTP client for the hub of one configuration.
pub(super) struct Client<'a> {
    pub config: &'a HubConfig,
    agent: Agent,
    origin: Uri,
}

/// Metadata of a file, requested before its transfer.
pub(super) struct FileInfo {
    /// Hash of the content, or another identifier of the content.
    pub etag: String,
    /// True if the etag came from the server that also sends the content. Only then is it valid in `If-Range`.
    pub is_from_content_server: bool,
    /// Size in bytes, if known.
    pub size: Option<u64>,
}

/// A failed request.
pub(super) enum Failure {
    /// Retry: the reason, and the delay that the server requests.
    Transient(String, Option<Duration>),
    /// Do not retry.
    Final(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Final(error)
    }
}

impl<'a> Client<'a> {
    pub fn new(config: &'a HubConfig) -> Result<Client<'a>> {
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            // `send` follows redirects, because it restricts the token to the hub.
            .max_redirects(0)
            .proxy(proxy(config)?)
            .user_agent(concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION")))
            // Without compression, sizes, ranges and hashes apply to the file itself.
            .accept_encoding("identity")
            .timeout_resolve(Some(config.reach_timeout))
            .timeout_connect(Some(config.reach_timeout))
            .timeout_recv_response(Some(config.stall_timeout))
            .timeout_per_read(Some(config.stall_timeout))
            .build()
            .into();
        let Ok(origin) = config.endpoint.parse() else {
            let found = config.endpoint.clone();
            return Err(Error::BadVariable { name: "HF_ENDPOINT", expected: "an address", found });
        };
        Ok(Client { config, agent, origin })
    }

    /// The commit of a revision and its files. This is the first request to the hub; without a response within
    /// [`HubConfig::reach_timeout`] it fails with [`Error::Unreachable`].
    pub fn repo_info(&self, name: &RepoName, progress: &dyn Progress) -> Result<RepoInfo> {
        let url = format!("{}/api/{}", self.config.endpoint, name.repo().api_url());
        let deadline = Instant::now() + self.config.reach_timeout;
        let text = self.retry(progress, Some(deadline), |left| {
            let mut response = self.send("GET", &url, &[], left)?.0;
            self.accept(response.status(), response.headers(), name, None)?;
            let body = response.body_mut().with_config().limit(MAX_INFO).read_to_string();
            body.map_err(|error| Failure::Transient(describe(&error), None))
        });
        let text = text.map_err(|failure| match failure {
            Failure::Final(error) => error,
            Failure::Transient(reason, _) => Error::Unreachable { endpoint: self.config.endpoint.clone(), reason },
        })?;
        let invalid = |reason: String| Error::BadAnswer { url: url.clone(), reason };
        let info: RepoInfo = serde_json::from_str(&text).map_err(|error| invalid(error.to_string()))?;
        // The commit becomes a folder name.
        if is_hex(&info.sha, 40) { Ok(info) } else { Err(invalid(format!("{:?} is not a commit", info.sha))) }
    }

    /// Etag and size of a file.
    pub fn file_info(&self, name: &RepoName, commit: &str, file: &str, progress: &dyn Progress) -> Result<FileInfo> {
        let url = self.file_url(name, commit, file);
        let answer = self.retry(progress, None, |_| {
            let (response, seen) = self.send("HEAD", &url, &[], Some(self.config.stall_timeout))?;
            if seen.linked_etag.is_none() {
                self.accept(response.status(), response.headers(), name, Some(file))?;
            }
            Ok((response, seen))
        });
        let (response, seen) = answer.map_err(|failure| transfer_error(failure, file))?;
        let headers = response.headers();
        let invalid = |reason: &str| Error::BadAnswer { url: url.clone(), reason: reason.into() };
        let is_from_content_server = seen.linked_etag.is_none();
        let etag = seen.linked_etag.or_else(|| text(headers, "etag")).ok_or_else(|| invalid("it has no etag"))?;
        // A weak etag is invalid in `If-Range`.
        let is_from_content_server = is_from_content_server && !etag.starts_with("W/");
        let etag = etag.trim_start_matches("W/").trim_matches('"').to_owned();
        // The etag becomes a file name.
        if model_format::files::check_file_name("", &etag).is_err() {
            return Err(invalid("its etag is not a hash"));
        }
        let size = seen.linked_size.or_else(|| {
            let own = response.status().is_success().then(|| text(headers, "content-length")).flatten();
            own.and_then(|size| size.parse().ok())
        });
        Ok(FileInfo { etag, is_from_content_server, size })
    }

    /// Requests a file's bytes from `first` on. `only_if` is an etag in quotes (`If-Range`): if the content's etag
    /// differs, the server sends the whole file.
    pub fn get(
        &self,
        name: &RepoName,
        commit: &str,
        file: &str,
        first: u64,
        only_if: Option<&str>,
    ) -> Result<Response<Body>, Failure> {
        let range = format!("bytes={first}-");
        let mut headers = Vec::new();
        if first > 0 {
            headers.push(("range", range.as_str()));
            headers.extend(only_if.map(|etag| ("if-range", etag)));
        }
        let (response, _) = self.send("GET", &self.file_url(name, commit, file), &headers, None)?;
        if response.status() != StatusCode::RANGE_NOT_SATISFIABLE {
            self.accept(response.status(), response.headers(), name, Some(file))?;
        }
        Ok(response)
    }

    fn file_url(&self, name: &RepoName, commit: &str, file: &str) -> String {
        format!("{}/{}/resolve/{commit}/{file}", self.config.endpoint, name.repo().url())
    }

    /// Sends a request and follows redirects. Only requests to the hub's own origin carry the token; after a redirect
    /// to another origin no further request does.
    fn send(
        &self,
        method: &str,
        url: &str,
        headers: &[(&str, &str)],
        limit: Option<Duration>,
    ) -> Result<(Response<Body>, Linked), Failure> {
        let invalid = |url: &str, reason: &str| Error::BadAnswer { url: url.into(), reason: reason.into() };
        let Ok(mut at) = url.parse::<Uri>() else { return Err(invalid(url, "not a valid address").into()) };
        let mut is_on_hub = true;
        let mut seen = Linked::default();
        for _ in 0..=MAX_REDIRECTS {
            is_on_hub = is_on_hub && same_origin(&at, &self.origin);
            let mut request = match method {
                "HEAD" => self.agent.head(&at),
                _ => self.agent.get(&at),
            };
            if let Some(token) = self.config.token.as_ref().filter(|_| is_on_hub) {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            let response = request.config().timeout_global(limit).build().call();
            let response = response.map_err(|error| Failure::Transient(describe(&error), None))?;
            if is_on_hub {
                seen.note(response.headers());
            }
            let is_redirect = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
            // For a large file, the hub's redirect already has the etag and the size.
            if !is_redirect || (method == "HEAD" && seen.linked_etag.is_some()) {
                return Ok((response, seen));
            }
            let target = text(response.headers(), "location");
            let target = target.ok_or_else(|| invalid(url, "a redirect without a location"))?;
            at =
                redirected(&at, &target).ok_or_else(|| invalid(url, "a redirect to an invalid or insecure address"))?;
        }
        Err(invalid(url, "too many redirects").into())
    }

    /// Returns `Ok` for a success status and the matching failure for any other.
    fn accept(
        &self,
        status: StatusCode,
        headers: &HeaderMap,
        name: &RepoName,
        file: Option<&str>,
    ) -> Result<(), Failure> {
        if status.is_success() {
            return Ok(());
        }
        let missing = || Error::NotFound {
            what: match file {
                Some(file) => format!("file `{file}` in `{name}`"),
                None => format!("repository or revision `{name}`"),
            },
        };
        Err(Failure::Final(match (status.as_u16(), text(headers, "x-error-code").as_deref()) {
            // The hub does not reveal whether a private repository exists.
            (404, _) | (_, Some("RepoNotFound" | "RevisionNotFound" | "EntryNotFound")) => missing(),
            (401 | 403, _) => Error::AccessDenied {
                repo: name.to_string(),
                reason: text(headers, "x-error-message").unwrap_or_else(|| format!("status {status}")),
                with_token: self.config.token.is_some(),
            },
            (408 | 425 | 429 | 500..=599, _) => {
                let wait = text(headers, "retry-after").and_then(|seconds| seconds.parse().ok());
                let wait = wait.map(|seconds| Duration::from_secs(seconds).min(self.config.stall_timeout));
                return Err(Failure::Transient(format!("status {status}"), wait));
            }
            _ => Error::BadAnswer {
                url: format!("{}/{name}/{}", self.config.endpoint, file.unwrap_or_default()),
                reason: format!("status {status}"),
            },
        }))
    }

    /// Repeats `attempt` after transient failures, with growing delays: at most five attempts, until `deadline`.
    /// `attempt` receives the time left before the deadline.
    pub fn retry<T>(
        &self,
        progress: &dyn Progress,
        deadline: Option<Instant>,
        mut attempt: impl FnMut(Option<Duration>) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let mut failures = 0;
        loop {
            if progress.is_cancelled() {
                return Err(Error::Cancelled.into());
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            match attempt(left) {
                Err(Failure::Transient(reason, wait)) => {
                    failures += 1;
                    let wait = wait.unwrap_or_default().max(self.backoff(failures));
                    let too_late = deadline.is_some_and(|deadline| Instant::now() + wait >= deadline);
                    if failures == 5 || too_late {
                        return Err(Failure::Transient(reason, None));
                    }
                    sleep(wait);
                }
                other => return other,
            }
        }
    }

    /// The delay after this number of consecutive failures.
    pub fn backoff(&self, failures: u32) -> Duration {
        self.config.retry_delay * 2u32.pow(failures.saturating_sub(1).min(5))
    }
}

/// Headers of the hub's redirects for a file on another server.
#[derive(Default)]
struct Linked {
    linked_etag: Option<String>,
    linked_size: Option<u64>,
}

impl Linked {
    fn note(&mut self, headers: &HeaderMap) {
        self.linked_etag = self.linked_etag.take().or_else(|| text(headers, "x-linked-etag"));
        self.linked_size = self.linked_size.or_else(|| text(headers, "x-linked-size")?.parse().ok());
    }
}

/// The error of a transfer after the last attempt.
pub(super) fn transfer_error(failure: Failure, file: &str) -> Error {
    match failure {
        Failure::Final(error) => error,
        Failure::Transient(reason, _) => Error::Transfer { file: file.into(), reason },
    }
}

/// A header as printable text of bounded length, because it may become part of a message.
pub(super) fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    let value = headers.get(name)?.to_str().ok()?;
    Some(value.chars().filter(|c| !c.is_control()).take(2000).collect())
}

/// A short text for a network error.
pub(super) fn describe(error: &ureq::Error) -> String {
    match error {
        ureq::Error::HostNotFound => "its name cannot be resolved".into(),
        ureq::Error::ConnectionFailed => "no connection".into(),
        ureq::Error::Timeout(_) => "no answer in time".into(),
        ureq::Error::Io(error) => error.to_string(),
        other => other.to_string(),
    }
}

fn proxy(config: &HubConfig) -> Result<Option<Proxy>> {
    let Some(address) = &config.proxy else { return Ok(None) };
    let bad = |_| Error::BadVariable {
        name: "HTTPS_PROXY",
        expected: "the address of a proxy",
        found: "another value (hidden, it may contain a password)".into(),
    };
    let plain = Proxy::new(address).map_err(bad)?;
    let mut builder = Proxy::builder(plain.protocol()).host(plain.host()).port(plain.port());
    if let Some(username) = plain.username() {
        builder = builder.username(username);
    }
    if let Some(password) = plain.password() {
        builder = builder.password(password);
    }
    for host in config.no_proxy.iter().flat_map(|list| list.split(',')) {
        builder = builder.no_proxy(host.trim());
    }
    builder.build().map(Some).map_err(bad)
}

fn same_origin(a: &Uri, b: &Uri) -> bool {
    let port = |uri: &Uri| {
        uri.port_u16().or(match uri.scheme_str() {
            Some("https") => Some(443),
            Some("http") => Some(80),
            _ => None,
        })
    };
    let same_host = matches!((a.host(), b.host()), (Some(a), Some(b)) if a.eq_ignore_ascii_case(b));
    a.scheme() == b.scheme() && same_host && port(a) == port(b)
}

/// Resolves a `Location` header relative to `from`. `None` if it is invalid or leads from https to http.
fn redirected(from: &Uri, location: &str) -> Option<Uri> {
    let scheme = from.scheme_str()?;
    let to: Uri = if location.contains("://") {
        location.parse().ok()?
    } else if let Some(rest) = location.strip_prefix("//") {
        format!("{scheme}://{rest}").parse().ok()?
    } else if location.starts_with('/') {
        format!("{scheme}://{}{location}", from.authority()?).parse().ok()?
    } else {
        let folder = from.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{scheme}://{}{folder}/{location}", from.authority()?).parse().ok()?
    };
    let is_http = matches!(to.scheme_str(), Some("http" | "https")) && to.host().is_some();
    let stays_secure = scheme != "https" || to.scheme_str() == Some("https");
    (is_http && stays_secure).then_some(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_resolve_and_never_leave_https() {
        let from: Uri = "https://hub.example/a/b?c=d".parse().unwrap();
        let to = |location| redirected(&from, location).map(|uri| uri.to_string());
        assert_eq!(to("/x?y").as_deref(), Some("https://hub.example/x?y"));
        assert_eq!(to("x").as_deref(), Some("https://hub.example/a/x"));
        assert_eq!(to("//cdn.example/x").as_deref(), Some("https://cdn.example/x"));
        assert_eq!(to("https://cdn.example/x?u=http://z").as_deref(), Some("https://cdn.example/x?u=http://z"));
        for bad in ["http://hub.example/x", "ftp://hub.example/x", "file:///etc/passwd", "https://", "https://a b/"] {
            assert_eq!(to(bad), None, "{bad}");
        }
    }

    #[test]
    fn same_origin_compares_scheme_host_and_port() {
        let same = |a: &str, b: &str| same_origin(&a.parse().unwrap(), &b.parse().unwrap());
        assert!(same("https://h.example/a", "https://H.example:443"));
        assert!(!same("https://h.example", "http://h.example"));
        assert!(!same("http://h.example:80", "http://h.example:81"));
        assert!(!same("https://h.example", "https://h.example.evil"));
        assert!(!same("https://h.example", "https://sub.h.example"));
    }
}

//! A small local hub for tests. Like the real hub, it sends large files from a second address. Each test passes a
//! function that alters its replies.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use model_hub::HubConfig;
use sha1::{Digest, Sha1};
use sha2::Sha256;

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// One of the server's two addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Host {
    Hub,
    Content,
}

#[derive(Debug, Clone)]
pub struct Request {
    pub host: Host,
    pub method: String,
    pub path: String,
    /// By lower-case name.
    pub headers: BTreeMap<String, String>,
    /// Port of the hub address, for redirects back to it.
    pub hub_port: u16,
    /// Number of earlier requests with this method, host and path.
    pub before: usize,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// True for a request for bytes from the content host.
    pub fn is_content(&self) -> bool {
        self.host == Host::Content && self.method == "GET"
    }

    /// True for a request for the metadata of `file`.
    pub fn is_head_of(&self, file: &str) -> bool {
        self.method == "HEAD" && self.path.ends_with(&format!("/{file}"))
    }
}

#[derive(Debug, Clone, Default)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    /// Close the connection after this many bytes of the body.
    pub cut: Option<usize>,
    /// True to keep the connection open without a reply.
    pub hangs: bool,
}

impl Reply {
    pub fn status(status: u16) -> Reply {
        Reply { status, ..Reply::default() }
    }

    pub fn with(mut self, name: &'static str, value: impl ToString) -> Reply {
        self.headers.retain(|(other, _)| *other != name);
        self.headers.push((name, value.to_string()));
        self
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Reply {
        self.body = body.into();
        self
    }
}

type Tamper = dyn Fn(&Request, Reply) -> Reply + Send + Sync;

pub struct Server {
    pub hub_port: u16,
    log: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// Starts a hub. All its repositories have these files. `tamper` alters its replies.
    pub fn start(
        files: &[(&str, Vec<u8>)],
        tamper: impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static,
    ) -> Server {
        let files: BTreeMap<String, Vec<u8>> =
            files.iter().map(|(name, bytes)| (name.to_string(), bytes.clone())).collect();
        let (hub, content) = (listen(), listen());
        let (hub_port, content_port) = (port(&hub), port(&content));
        let log = Arc::new(Mutex::new(Vec::new()));
        let tamper: Arc<Tamper> = Arc::new(tamper);
        for (host, listener) in [(Host::Hub, hub), (Host::Content, content)] {
            let (files, log, tamper) = (files.clone(), log.clone(), tamper.clone());
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let (files, log, tamper) = (files.clone(), log.clone(), tamper.clone());
                    std::thread::spawn(move || {
                        let Some(mut request) = read_request(&stream, host, hub_port) else { return };
                        let same = |r: &Request| {
                            (r.host, &r.method, &r.path) == (request.host, &request.method, &request.path)
                        };
                        let mut log = log.lock().unwrap();
                        request.before = log.iter().filter(|r| same(r)).count();
                        log.push(request.clone());
                        drop(log);
                        let reply = tamper(&request, reply(&files, &request, content_port));
                        // Ignore errors: the client may have closed the connection.
                        let _ = send(stream, &request, &reply);
                    });
                }
            });
        }
        Server { hub_port, log }
    }

    /// All requests so far, in order.
    pub fn log(&self) -> Vec<Request> {
        self.log.lock().unwrap().clone()
    }

    /// The `Range` of each request for content.
    pub fn ranges(&self) -> Vec<Option<String>> {
        self.log().iter().filter(|r| r.is_content()).map(|r| r.header("range").map(str::to_owned)).collect()
    }

    /// A configuration for this hub, with a short retry delay.
    pub fn config(&self, home: &std::path::Path) -> HubConfig {
        let mut config = HubConfig::new(home);
        config.endpoint = format!("http://127.0.0.1:{}", self.hub_port);
        config.retry_delay = std::time::Duration::from_millis(1);
        config
    }
}

fn listen() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

fn port(listener: &TcpListener) -> u16 {
    listener.local_addr().unwrap().port()
}

/// The hub's etag of a file: sha256 for a large file, git's hash for a small one.
pub fn etag(name: &str, bytes: &[u8]) -> String {
    let digest = match is_large(name) {
        true => Sha256::digest(bytes).to_vec(),
        false => Sha1::new().chain_update(format!("blob {}\0", bytes.len())).chain_update(bytes).finalize().to_vec(),
    };
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn is_large(name: &str) -> bool {
    [".safetensors", ".bin", ".parquet", ".gz"].iter().any(|end| name.ends_with(end))
}

/// The reply of a correct hub.
fn reply(files: &BTreeMap<String, Vec<u8>>, request: &Request, content_port: u16) -> Reply {
    let path = &request.path;
    if request.host == Host::Content {
        let Some(bytes) = files.get(path.trim_start_matches('/')) else { return Reply::status(404) };
        return ranged(request, bytes);
    }
    let is_info = path.starts_with("/api/models/") || path.starts_with("/api/datasets/");
    if is_info && (path.ends_with("/revision/main") || path.ends_with("/revision/refs%2Fconvert%2Fparquet")) {
        let siblings: Vec<_> = files.keys().map(|name| serde_json::json!({ "rfilename": name })).collect();
        return Reply::status(200).body(serde_json::json!({ "sha": COMMIT, "siblings": siblings }).to_string());
    }
    let name = path.split_once(&format!("/resolve/{COMMIT}/")).map_or("", |(_, name)| name);
    let Some(bytes) = files.get(name) else { return Reply::status(404).with("x-error-code", "EntryNotFound") };
    if is_large(name) {
        Reply::status(302)
            .with("location", format!("http://127.0.0.1:{content_port}/{name}"))
            .with("x-linked-etag", format!("\"{}\"", etag(name, bytes)))
            .with("x-linked-size", bytes.len())
    } else {
        Reply::status(200).with("etag", format!("\"{}\"", etag(name, bytes))).body(bytes.clone())
    }
}

/// The content host's etag. It differs from the hub's etag, as on the real hub.
pub const CONTENT_ETAG: &str = "\"content-1\"";

fn ranged(request: &Request, bytes: &[u8]) -> Reply {
    let whole = Reply::status(200).with("etag", CONTENT_ETAG).body(bytes);
    let Some(range) = request.header("range") else { return whole };
    if request.header("if-range").is_some_and(|etag| etag != CONTENT_ETAG) {
        return whole;
    }
    let first: usize = range.strip_prefix("bytes=").unwrap().strip_suffix('-').unwrap().parse().unwrap();
    if first >= bytes.len() {
        return Reply::status(416).with("content-range", format!("bytes */{}", bytes.len()));
    }
    Reply::status(206)
        .with("etag", CONTENT_ETAG)
        .with("content-range", format!("bytes {first}-{}/{}", bytes.len() - 1, bytes.len()))
        .body(&bytes[first..])
}

fn read_request(stream: &TcpStream, host: Host, hub_port: u16) -> Option<Request> {
    let mut lines = BufReader::new(stream.take(1 << 16)).lines();
    let first = lines.next()?.ok()?;
    let mut words = first.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    for line in lines {
        let line = line.ok()?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    Some(Request { host, method, path, headers, hub_port, before: 0 })
}

fn send(mut stream: TcpStream, request: &Request, reply: &Reply) -> std::io::Result<()> {
    if reply.hangs {
        // Block until the client closes the connection.
        return stream.read(&mut [0]).map(drop);
    }
    let mut head = format!("HTTP/1.1 {} Some Reason\r\nConnection: close\r\n", reply.status);
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    if !reply.headers.iter().any(|(name, _)| *name == "content-length") {
        head += &format!("content-length: {}\r\n", reply.body.len());
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    if request.method != "HEAD" {
        stream.write_all(&reply.body[..reply.cut.unwrap_or(reply.body.len())])?;
    }
    stream.flush()
}

//! Downloads from a local hub that reproduces the faults observed on the real hub.

mod server;
mod transfers;

use std::path::{Path, PathBuf};
use std::time::Duration;

use model_format::checkpoint::write_safetensors;
use model_format::{Dtype, Error as FormatError, HostTensor};
use model_hub::{Error, HubConfig, Model, Progress, Result, fetch_data_file, open};

use server::{COMMIT, Host, Reply, Request, Server, etag};

const WEIGHTS: &str = "model.safetensors";
const CONFIG: &str = "{\n  \"model_type\": \"tiny\"\n}\n";

/// A checkpoint with weights large enough for an interrupted transfer.
fn checkpoint() -> Vec<(&'static str, Vec<u8>)> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(WEIGHTS);
    let bytes: Vec<u8> = (0..600_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let tensor = HostTensor { dtype: Dtype::F16, shape: vec![300, 1000], bytes: bytes.into() };
    write_safetensors(&path, [("model.norm.weight".into(), tensor)]).unwrap();
    vec![
        ("config.json", CONFIG.into()),
        ("tokenizer.json", b"{}".into()),
        ("README.md", b"not fetched".into()),
        (WEIGHTS, std::fs::read(path).unwrap()),
    ]
}

fn weights() -> Vec<u8> {
    checkpoint().pop().unwrap().1
}

/// Records all events, and cancels the download after `stop_after` bytes.
#[derive(Default)]
struct Listener {
    events: Vec<String>,
    /// Cancel after this many bytes of a file.
    stop_after: Option<u64>,
    stopped: bool,
}

impl Progress for Listener {
    fn message(&mut self, text: &str) {
        self.events.push(format!("message {text}"));
    }
    fn start(&mut self, file: &str, done: u64, total: Option<u64>) {
        self.events.push(format!("start {file} {done} {total:?}"));
    }
    fn update(&mut self, done: u64) {
        self.stopped = self.stop_after.is_some_and(|limit| done >= limit);
    }
    fn finish(&mut self) {
        self.events.push("finish".into());
    }
    fn is_cancelled(&self) -> bool {
        self.stopped
    }
}

/// A folder with the cache, and paths of `org/tiny` in it.
struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Home {
        Home(tempfile::tempdir().unwrap())
    }
    fn path(&self) -> &Path {
        self.0.path()
    }
    fn repo(&self) -> PathBuf {
        self.path().join("hub/models--org--tiny")
    }
    fn snapshot(&self, file: &str) -> PathBuf {
        self.repo().join("snapshots").join(COMMIT).join(file)
    }
    fn incomplete(&self) -> PathBuf {
        self.repo().join("blobs").join(format!("{}.incomplete", etag(WEIGHTS, &weights())))
    }
    fn blobs(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.repo().join("blobs")).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn fetch(server: &Server, home: &Home) -> Result<Model> {
    open("org/tiny", &server.config(home.path()), &mut ())
}

/// Fetches `org/tiny` and checks that the cached weights equal the hub's.
#[track_caller]
fn fetch_and_compare(server: &Server, home: &Home) {
    let checkpoint = fetch(server, home).unwrap().into_checkpoint().unwrap();
    assert_eq!(checkpoint.tensors().len(), 1);
    assert!(std::fs::read(home.snapshot(WEIGHTS)).unwrap() == weights());
    assert!(!home.incomplete().exists());
}

fn unaltered(_: &Request, reply: Reply) -> Reply {
    reply
}

/// Alters replies with content. `change` receives the number of earlier content requests.
fn content(
    change: impl Fn(usize, Reply) -> Reply + Send + Sync + 'static,
) -> impl Fn(&Request, Reply) -> Reply + Send + Sync {
    move |request, reply| if request.is_content() { change(request.before, reply) } else { reply }
}

#[test]
fn a_data_set_file_is_cached() {
    let file = "en/train/0000.bin";
    let (server, home) = (Server::start(&[(file, b"rows".into()), ("README.md", b"".into())], unaltered), Home::new());
    let config = server.config(home.path());
    let path = fetch_data_file("org/texts@refs/convert/parquet", file, &config, &mut ()).unwrap();
    let repo = home.path().join("hub/datasets--org--texts");
    assert_eq!(path, repo.join("snapshots").join(COMMIT).join(file));
    assert_eq!(std::fs::read(&path).unwrap(), b"rows");
    assert_eq!(std::fs::read_to_string(repo.join("refs/refs/convert/parquet")).unwrap(), COMMIT);
    assert!(server.log().iter().any(|request| request.path.starts_with("/datasets/org/texts/resolve/")));

    let offline = HubConfig { offline: true, ..config };
    assert_eq!(fetch_data_file("org/texts@refs/convert/parquet", file, &offline, &mut ()).unwrap(), path);
    for wrong in ["en/train/0001.bin", "../0000.bin", "en//0000.bin", "/etc/passwd"] {
        assert!(fetch_data_file("org/texts", wrong, &server.config(home.path()), &mut ()).is_err(), "{wrong}");
    }
}

#[test]
fn a_model_is_downloaded_once_to_the_standard_cache() {
    let (server, home) = (Server::start(&checkpoint(), unaltered), Home::new());
    let mut progress = Listener::default();
    let config = server.config(home.path());
    let found = open("org/tiny", &config, &mut progress).unwrap().into_checkpoint().unwrap();
    assert_eq!(found.config_json(), CONFIG);
    let size = weights().len();
    let expected = [
        format!("start config.json 0 Some({})", CONFIG.len()),
        "finish".into(),
        "start tokenizer.json 0 Some(2)".into(),
        "finish".into(),
        format!("start model.safetensors 0 Some({size})"),
        "finish".into(),
    ];
    assert_eq!(progress.events, expected);

    // Hashes by `git hash-object` of config.json and tokenizer.json.
    let config_hash = "90ffa959fdbaec0d261ea3bd7dba7b14cecce48a";
    assert_eq!(etag("tokenizer.json", b"{}"), "9e26dfeeb6e641a33dae4961196235bdb965b21b");
    assert_eq!(etag("config.json", CONFIG.as_bytes()), config_hash);
    assert_eq!(std::fs::read_to_string(home.repo().join("blobs").join(config_hash)).unwrap(), CONFIG);
    assert_eq!(std::fs::read_to_string(home.repo().join("refs/main")).unwrap(), COMMIT);
    assert!(!home.snapshot("README.md").exists());
    #[cfg(unix)]
    assert_eq!(std::fs::read_link(home.snapshot("config.json")).unwrap(), Path::new("../../blobs").join(config_hash));

    // The second run requests the file list only. An offline run sends no request.
    let before = server.log().len();
    fetch_and_compare(&server, &home);
    assert_eq!(server.log().len(), before + 1);
    let offline = HubConfig { offline: true, ..config };
    assert!(open("org/tiny", &offline, &mut ()).is_ok());
    assert!(open(&format!("org/tiny@{COMMIT}"), &offline, &mut ()).is_ok());
    assert_eq!(server.log().len(), before + 1);
}

#[test]
fn only_the_hub_receives_the_token() {
    // A redirect within the hub keeps the token.
    let server = Server::start(&checkpoint(), |request, reply| match request.path.as_str() {
        path if path.ends_with("/tokenizer.json") => Reply::status(307).with("location", "/elsewhere"),
        "/elsewhere" => Reply::status(200).with("etag", format!("\"{}\"", etag("tokenizer.json", b"{}"))).body("{}"),
        _ => reply,
    });
    let home = Home::new();
    let config = HubConfig { token: Some("hf_secret".into()), ..server.config(home.path()) };
    open("org/tiny", &config, &mut ()).unwrap();
    let log = server.log();
    assert!(log.iter().any(|request| request.host == Host::Content));
    assert!(log.iter().any(|request| request.path == "/elsewhere"));
    for request in log {
        let expected = (request.host == Host::Hub).then_some("Bearer hf_secret");
        assert_eq!(request.header("authorization"), expected, "{request:?}");
    }
}

#[test]
fn a_redirect_back_to_the_hub_carries_no_token() {
    // hub -> content -> hub: another server chose the last address.
    let server = Server::start(&checkpoint(), |request, reply| match request.is_content() {
        true => Reply::status(302).with("location", format!("http://127.0.0.1:{}/trap", request.hub_port)),
        false => reply,
    });
    let home = Home::new();
    let config = HubConfig { token: Some("hf_secret".into()), ..server.config(home.path()) };
    assert!(open("org/tiny", &config, &mut ()).is_err());
    let log = server.log();
    let trap = log.iter().find(|request| request.path == "/trap").unwrap();
    assert_eq!((trap.host, trap.header("authorization")), (Host::Hub, None));
}

#[test]
fn access_errors_have_hints() {
    let answer = |reply: fn() -> Reply, token: Option<&str>| {
        let (server, home) = (Server::start(&checkpoint(), move |_, _| reply()), Home::new());
        let config = HubConfig { token: token.map(str::to_owned), ..server.config(home.path()) };
        let error = open("org/tiny", &config, &mut ()).unwrap_err();
        assert_eq!(server.log().len(), 1, "retried after {error}");
        (error.to_string(), error.hint().unwrap())
    };
    let gated = || {
        Reply::status(401)
            .with("x-error-code", "GatedRepo")
            .with("x-error-message", "Access to org/tiny is restricted.")
    };
    let (error, hint) = answer(|| Reply::status(404), None);
    assert!(error.contains("repository or revision `org/tiny`") && hint.contains("spelling"), "{error} {hint}");
    let (error, hint) = answer(|| Reply::status(401).with("x-error-code", "RepoNotFound"), None);
    assert!(error.contains("the hub has no repository") && hint.contains("HF_TOKEN"), "{error} {hint}");
    let (error, hint) = answer(gated, None);
    assert!(error.contains("Access to org/tiny is restricted.") && hint.contains("set HF_TOKEN"), "{error} {hint}");
    let (error, hint) = answer(gated, Some("hf_x"));
    assert!(error.contains("denies access") && hint.contains("is valid"), "{error} {hint}");
    let (error, _) = answer(|| Reply::status(403), Some("hf_x"));
    assert!(error.contains("403") && !error.contains("hf_x"), "{error}");
    let (error, _) = answer(|| Reply::status(418), None);
    assert!(error.contains("418"), "{error}");
}

#[test]
fn invalid_responses_are_errors() {
    let info = |sha: &str| serde_json::json!({ "sha": sha, "siblings": [{ "rfilename": "config.json" }] }).to_string();
    let infos = ["".into(), "<html>".into(), "{}".into(), info("../../../x"), info("main")];
    for body in infos {
        let server = Server::start(&checkpoint(), move |_, _| Reply::status(200).body(body.clone()));
        let error = fetch(&server, &Home::new()).unwrap_err();
        assert!(matches!(error, Error::BadAnswer { .. }), "{error}");
    }
    for bad in ["\"../../x\"", "\"\"", "\".x\""] {
        let server = Server::start(&checkpoint(), move |request, reply| match request.is_head_of(WEIGHTS) {
            true => reply.with("x-linked-etag", bad),
            false => reply,
        });
        let error = fetch(&server, &Home::new()).unwrap_err();
        assert!(matches!(error, Error::BadAnswer { .. }), "{error}");
    }
    let server = Server::start(&checkpoint(), |request, _| Reply::status(302).with("location", &request.path));
    let error = fetch(&server, &Home::new()).unwrap_err();
    assert!(error.to_string().contains("too many redirects"), "{error}");
}

#[test]
fn shard_names_cannot_leave_the_folder() {
    let index = |shard: &str| serde_json::json!({ "weight_map": { "x": shard } }).to_string();
    for shard in ["../../../../evil.safetensors", "/etc/passwd", "a/b.safetensors", "..", ""] {
        let index = index(shard);
        let files = [("config.json", CONFIG.into()), ("model.safetensors.index.json", index.into_bytes())];
        let (server, home) = (Server::start(&files, unaltered), Home::new());
        let error = fetch(&server, &home).unwrap_err();
        assert!(matches!(error, Error::Format(FormatError::Malformed { .. })), "{error}");
    }
}

#[test]
fn the_index_determines_the_shards() {
    let index = serde_json::json!({ "weight_map": { "model.norm.weight": "model-00001-of-00001.safetensors" } });
    let files = [
        ("config.json", CONFIG.into()),
        ("model.safetensors.index.json", index.to_string().into_bytes()),
        ("model-00001-of-00001.safetensors", weights()),
        ("other.safetensors", weights()),
    ];
    let (server, home) = (Server::start(&files, unaltered), Home::new());
    assert_eq!(fetch(&server, &home).unwrap().into_checkpoint().unwrap().tensors().len(), 1);
    assert!(!home.snapshot("other.safetensors").exists());
    // A shard of the index is missing in the repository.
    let (server, home) = (Server::start(&files[..2], unaltered), Home::new());
    let error = fetch(&server, &home).unwrap_err();
    assert!(matches!(&error, Error::NotFound { what } if what.contains("model-00001-of-00001")), "{error}");
}

#[test]
fn an_mlc_repository_opens_as_a_folder() {
    let config = serde_json::json!({
        "model_type": "llama", "quantization": "q4f16_1", "context_window_size": 512, "model_config": {},
        "tokenizer_files": ["tokenizer.json", "merges.txt"], "eos_token_id": 2, "conv_template": { "name": "chatml" },
    });
    let record = serde_json::json!({
        "name": "model.norm.weight", "shape": [4], "dtype": "float16", "format": "raw", "nbytes": 8, "byteOffset": 0,
    });
    let index = serde_json::json!({ "metadata": {}, "records": [
        { "dataPath": "params_shard_0.bin", "format": "raw-shard", "nbytes": 8, "records": [record] },
    ]});
    let files = [
        ("mlc-chat-config.json", config.to_string().into_bytes()),
        ("ndarray-cache.json", index.to_string().into_bytes()),
        ("tokenizer.json", b"{}".into()),
        ("params_shard_0.bin", vec![1; 8]),
        ("README.md", b"not fetched".into()),
    ];
    let (server, home) = (Server::start(&files, unaltered), Home::new());
    let Model::Mlc(folder) = fetch(&server, &home).unwrap() else { panic!("not an MLC folder") };
    let mut names: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["mlc-chat-config.json", "ndarray-cache.json", "params_shard_0.bin", "tokenizer.json"]);

    // The same folder by its path. It is not a checkpoint.
    let path = folder.to_str().unwrap();
    let config = server.config(home.path());
    assert!(matches!(open(path, &config, &mut ()), Ok(Model::Mlc(found)) if found == folder));
    let error = open(path, &config, &mut ()).unwrap().into_checkpoint().err().unwrap();
    assert!(matches!(&error, Error::NotACheckpoint { .. }) && error.hint().unwrap().contains("checkpoint"), "{error}");
}

#[test]
fn hints_list_the_weights_in_other_formats() {
    type Files = [(&'static str, Vec<u8>)];
    let cases: [(&Files, &str); 3] = [
        (&[("tiny.Q4_0.gguf", vec![]), ("README.md", vec![])], "tiny.Q4_0.gguf"),
        (&[("config.json", vec![]), ("pytorch_model.bin", vec![])], "pytorch_model.bin"),
        (&[("README.md", vec![])], "language model"),
    ];
    for (files, expected) in cases {
        let error = fetch(&Server::start(files, unaltered), &Home::new()).unwrap_err();
        assert!(matches!(error, Error::NoWeights { .. }) && error.hint().unwrap().contains(expected), "{error}");
    }
}

#[test]
fn the_cache_is_used_if_the_hub_is_unreachable() {
    let (server, home) = (Server::start(&checkpoint(), unaltered), Home::new());
    fetch_and_compare(&server, &home);

    // A closed port, and a server that never replies.
    let silent = Server::start(&checkpoint(), |_, _| Reply { hangs: true, ..Reply::default() });
    let closed = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    for port in [closed, silent.hub_port] {
        let mut config = server.config(home.path());
        config.endpoint = format!("http://127.0.0.1:{port}");
        config.reach_timeout = Duration::from_millis(200);
        let mut progress = Listener::default();
        assert!(open("org/tiny", &config, &mut progress).is_ok());
        assert!(progress.events.len() == 1 && progress.events[0].contains("using the copy in the cache"));
        let error = open("org/other", &config, &mut ()).unwrap_err();
        assert!(matches!(&error, Error::Unreachable { endpoint, .. } if *endpoint == config.endpoint), "{error}");
        assert!(error.hint().unwrap().contains("HF_ENDPOINT"));
    }
}

#[test]
fn invalid_sources_are_errors() {
    let home = Home::new();
    let config = HubConfig { offline: true, ..HubConfig::new(home.path()) };
    let message = |source: &str| {
        let error = open(source, &config, &mut ()).unwrap_err();
        assert!(error.hint().is_some(), "{error}");
        error.to_string()
    };
    assert!(message("nowhere").contains("no such file or folder"));
    assert!(message("./nowhere/at/all").contains("no such file or folder"));
    assert!(message("org/name@../x").contains("not a branch, tag or commit"));
    assert!(message("org/name").contains("not in the cache"));
    std::fs::write(home.path().join("x.txt"), "hello").unwrap();
    assert!(message(home.path().join("x.txt").to_str().unwrap()).contains("not a GGUF file"));
    std::fs::write(home.path().join("x.gguf"), "hello").unwrap();
    assert!(message(home.path().to_str().unwrap()).contains("`x.gguf`"));
    assert!(message(home.path().join("x.gguf").to_str().unwrap()).contains("does not begin with `GGUF`"));
    std::fs::remove_file(home.path().join("x.gguf")).unwrap();
    assert!(message(home.path().to_str().unwrap()).contains("config.json"));
}

#[test]
fn the_demo_model_comes_from_the_hub() {
    let (server, home) = (Server::start(&checkpoint(), unaltered), Home::new());
    let config = server.config(home.path());
    assert!(matches!(open("demo", &config, &mut ()), Ok(Model::Checkpoint(_))));
    assert!(server.log()[0].path.starts_with("/api/models/HuggingFaceTB/SmolLM2-135M-Instruct/"));
    assert!(open("demo", &HubConfig { offline: true, ..config.clone() }, &mut ()).is_ok());
    // Offline and not in the cache: the package index is not used either.
    let other = Home::new();
    let offline = HubConfig { offline: true, ..server.config(other.path()) };
    assert!(matches!(open("demo", &offline, &mut ()), Err(Error::Offline { .. })));
}

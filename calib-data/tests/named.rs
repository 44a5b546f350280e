//! Fetches each named data set from a local hub server, with the file names of the real repositories, and reads its
//! texts.

// These tests use only a part of the server; the tests of `model-hub` use the rest.
#[allow(dead_code, reason = "model-hub's own tests use the rest")]
#[path = "../../model-hub/tests/hub/server.rs"]
mod server;

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use calib_data::{ChatMessage, DATA_SETS, DataSet, Place, Records, Source, Split, read_documents};
use model_hub::HubConfig;
use serde_json::{Value, json};

use server::{Host, Server};

fn testdata(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/calib").join(file)
}

/// The texts as pyarrow reads them; empty strings for nulls.
fn rows(file: &str) -> Vec<String> {
    let json: Value = serde_json::from_str(&std::fs::read_to_string(testdata("expected.json")).unwrap()).unwrap();
    json[file].as_array().unwrap().iter().map(|row| row.as_str().unwrap_or_default().to_owned()).collect()
}

/// The content of a data set's file, and the texts expected from it.
fn file_of(data_set: &DataSet) -> (Vec<u8>, Vec<String>) {
    match data_set.name {
        "wikitext2" => (std::fs::read(testdata("text.parquet")).unwrap(), vec![rows("text.parquet").join("\n\n")]),
        "ptb" => (std::fs::read(testdata("sentences.parquet")).unwrap(), vec![rows("sentences.parquet").join(" ")]),
        "c4" => {
            let texts: Vec<String> = (0..5).map(|i| format!("Page {i}.\nIt has \"lines\".")).collect();
            let mut file = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            for text in &texts {
                let url = "https://example.org/";
                writeln!(file, "{}", json!({ "text": text, "timestamp": "2019-04-25T12:57:54Z", "url": url })).unwrap();
            }
            (file.finish().unwrap(), texts)
        }
        name => panic!("no file for {name}"),
    }
}

fn texts(data_set: &DataSet, hub: &HubConfig) -> Vec<String> {
    let path = data_set.fetch(hub, &mut ()).unwrap();
    let render = |_: &[ChatMessage]| -> calib_data::Result<String, String> { panic!("unexpected conversation") };
    read_documents(&path, Records { column: Some(data_set.column), join: data_set.join }, render).unwrap().texts
}

#[test]
fn every_named_data_set_is_fetched_and_read() {
    for data_set in DATA_SETS {
        let (file, expected) = file_of(data_set);
        let files = [(data_set.file, file), ("README.md", b"rows".to_vec())];
        let server = Server::start(&files, |_, reply| reply);
        let home = tempfile::tempdir().unwrap();
        let hub = server.config(home.path());
        assert_eq!(texts(data_set, &hub), expected, "{data_set:?}");

        // The hub gives the file list and a redirect; the bytes come from the redirect's target.
        let (repository, revision) = data_set.repository.split_once('@').unwrap_or((data_set.repository, "main"));
        let log = server.log();
        let list = format!("/api/datasets/{repository}/revision/{}", revision.replace('/', "%2F"));
        assert!(log.iter().any(|request| request.host == Host::Hub && request.path == list), "{list}: {log:?}");
        let of_file = format!("/datasets/{repository}/resolve/{}/{}", server::COMMIT, data_set.file);
        assert!(log.iter().any(|request| request.host == Host::Hub && request.path == of_file), "{of_file}: {log:?}");
        assert_eq!(server.ranges().len(), 1, "{data_set:?}: fetched once");

        // The second fetch is offline and sends no request.
        let asked = log.len();
        assert_eq!(texts(data_set, &HubConfig { offline: true, ..hub }), expected);
        assert_eq!(server.log().len(), asked);
    }
}

#[test]
fn a_name_without_split_means_the_training_split() {
    for name in ["wikitext2", "c4", "ptb"] {
        let Place::Hub(data_set) = Source::parse(name).unwrap().place else { panic!("`{name}` is a data set") };
        assert_eq!((data_set.name, data_set.split), (name, Split::Train));
        let Place::Hub(data_set) = Source::parse(&format!("{name}:validation")).unwrap().place else {
            panic!("{name}")
        };
        assert_eq!(data_set.split, Split::Validation);
        assert!(DATA_SETS.contains(data_set));
    }
}

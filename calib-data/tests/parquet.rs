//! Reads parquet files written by pyarrow and compares the texts with pyarrow's own. Corrupted files give errors.

#[path = "../../model-format/tests/common/mutation.rs"]
mod mutation;

use std::path::{Path, PathBuf};

use calib_data::{ChatMessage, Records, Result, read_documents};
use serde_json::Value;

#[global_allocator]
static COUNTING: mutation::Counting = mutation::Counting;

fn testdata(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/calib").join(file)
}

fn render(messages: &[ChatMessage]) -> Result<String, String> {
    Ok(messages.iter().map(|message| format!("[{}]{}", message.role, message.content)).collect())
}

fn read(path: &Path, column: Option<&str>, join: Option<&str>) -> Result<Vec<String>> {
    Ok(read_documents(path, Records { column, join }, render)?.texts)
}

/// The values of the text column as pyarrow reads them.
fn expected(file: &str) -> Vec<Value> {
    let json = std::fs::read_to_string(testdata("expected.json")).unwrap();
    serde_json::from_str::<Value>(&json).unwrap()[file].as_array().unwrap().clone()
}

#[test]
fn texts_equal_pyarrow() {
    for file in ["text.parquet", "text-gzip-v2.parquet"] {
        let rows: Vec<_> = expected(file).iter().map(|row| row.as_str().unwrap_or_default().to_owned()).collect();
        assert_eq!(rows.len(), 40);
        let texts: Vec<_> = rows.iter().filter(|row| !row.is_empty()).cloned().collect();
        assert_eq!(read(&testdata(file), None, None).unwrap(), texts, "{file}");
        assert_eq!(read(&testdata(file), Some("text"), Some("\n\n")).unwrap(), [rows.join("\n\n")], "{file}");
    }
}

#[test]
fn conversations_are_rendered() {
    let field = |message: &Value, name: &str| message[name].as_str().unwrap().to_owned();
    let whole = |row: &Value| {
        let messages = row.as_array().unwrap().iter();
        messages.map(|message| format!("[{}]{}", field(message, "role"), field(message, "content"))).collect::<String>()
    };
    let texts: Vec<_> = expected("chat.parquet").iter().map(whole).collect();
    assert_eq!(read(&testdata("chat.parquet"), None, None).unwrap(), texts);
    assert_eq!(read(&testdata("chat.parquet"), Some("prompt_id"), None).unwrap()[..2], ["0000", "0001"]);
}

#[test]
fn a_missing_column_error_lists_the_columns() {
    let error = read(&testdata("text.parquet"), Some("body"), None).unwrap_err();
    assert!(error.to_string().ends_with("it has no column `body`, only `id`, `text`, `score`"), "{error}");
    let error = read(&testdata("text.parquet"), Some("score"), None).unwrap_err();
    assert!(error.to_string().starts_with("row 1 of `"), "{error}");
}

#[test]
fn corrupted_files_give_errors() {
    let good =
        ["text.parquet", "text-gzip-v2.parquet", "chat.parquet"].map(|file| std::fs::read(testdata(file)).unwrap());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    // Few iterations: each caught panic of the library takes a millisecond.
    mutation::check_copies(3000, &good, |bytes| {
        std::fs::write(&path, bytes).unwrap();
        let _ = read(&path, None, None);
    });
}

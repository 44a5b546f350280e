//! Reads the records of a parquet file, the storage format of the hub's data sets.
//!
//! Converts each row to JSON, so that `documents.rs` treats parquet and JSON lines alike.

use std::{fs::File, path::Path, sync::Arc};

use model_format::caught::caught;
use parquet::{
    errors::ParquetError,
    file::reader::{FileReader, SerializedFileReader},
    schema::types::Type,
};
use serde_json::Value;

use crate::{Error, Result};

/// Default columns: a text or a conversation.
const COLUMNS: [&str; 2] = ["text", "messages"];

/// Calls `take` with the number (from 1) and the record of each row, until it returns false. A record has `column`
/// only, or by default the columns in [`COLUMNS`]. Returns true if `take` stopped.
pub(crate) fn read(
    path: &Path,
    column: Option<&str>,
    take: &mut dyn FnMut(usize, &Value) -> Result<bool>,
) -> Result<bool> {
    let file = File::open(path).map_err(|source| Error::Read { path: path.into(), source })?;
    let reader = guarded(path, || SerializedFileReader::new(file))?;
    let schema = reader.metadata().file_metadata().schema();
    let wanted: &[&str] = column.as_ref().map_or(&COLUMNS, std::slice::from_ref);
    let fields: Vec<Arc<Type>> =
        schema.get_fields().iter().filter(|field| wanted.contains(&field.name())).cloned().collect();
    if fields.is_empty() {
        let names: Vec<_> = schema.get_fields().iter().map(|field| field.name()).collect();
        let reason = format!("it has no column `{}`, only `{}`", wanted.join("` or `"), names.join("`, `"));
        return Err(Error::BadParquet { path: path.into(), reason });
    }
    let projection = Type::group_type_builder(schema.name()).with_fields(fields);
    let mut rows = guarded(path, || reader.get_row_iter(Some(projection.build()?)))?;
    for number in 1.. {
        let Some(row) = guarded(path, || rows.next().transpose())? else { break };
        if !take(number, &row.to_json_value())? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Runs `read` and turns both errors and panics of the parquet library into [`Error::BadParquet`]. The library panics
/// on some damaged files because it trusts their metadata.
fn guarded<T>(path: &Path, read: impl FnOnce() -> Result<T, ParquetError>) -> Result<T> {
    let bad = |reason: String| Error::BadParquet { path: path.into(), reason };
    match caught(read) {
        Ok(result) => result.map_err(|error| bad(describe(&error))),
        Err(_) => Err(bad("its metadata contradicts its data".into())),
    }
}

/// The message without the library's prefix, the kind of error.
fn describe(error: &ParquetError) -> String {
    let text = error.to_string();
    text.split_once(": ").map_or(text.clone(), |(_, reason)| reason.to_owned())
}

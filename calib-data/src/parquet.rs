//! Records of a parquet file, as the hub's data sets are kept.
//!
//! `documents.rs` takes them one by one, as JSON, so that they mean what the same records mean in JSON lines.

use std::{fs::File, path::Path, sync::Arc};

use model_format::caught::caught;
use parquet::{
    errors::ParquetError,
    file::reader::{FileReader, SerializedFileReader},
    schema::types::Type,
};
use serde_json::Value;

use crate::{Error, Result};

/// Columns that hold a text or a conversation where nobody says which do.
const COLUMNS: [&str; 2] = ["text", "messages"];

/// Gives `take` the number (from 1) and the record of each row, of `column` or else of those that are known, until it
/// wants no more. Whether there was more.
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
        let reason = format!("it has no column `{}`, but `{}`", wanted.join("` or `"), names.join("`, `"));
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

/// What the library reads; an error where it fails, and also where it panics: it trusts what some fields of a file say.
fn guarded<T>(path: &Path, read: impl FnOnce() -> Result<T, ParquetError>) -> Result<T> {
    let bad = |reason: String| Error::BadParquet { path: path.into(), reason };
    match caught(read) {
        Ok(result) => result.map_err(|error| bad(describe(&error))),
        Err(_) => Err(bad("what it says of itself is not what it holds".into())),
    }
}

/// Without the kind of error, which says what follows anyway.
fn describe(error: &ParquetError) -> String {
    let text = error.to_string();
    text.split_once(": ").map_or(text.clone(), |(_, reason)| reason.to_owned())
}

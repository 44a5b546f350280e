//! Typed access to the metadata of a GGUF file. Errors name the file and the key.

use std::collections::HashMap;
use std::path::PathBuf;

use candle_core::quantized::gguf_file::Value;

use crate::{Error, Result};

/// The metadata of one file. The `opt_` methods return `None` for a missing key and an error for another type.
pub(super) struct Metadata {
    /// The file, for error messages.
    pub file: PathBuf,
    /// Values by key.
    pub entries: HashMap<String, Value>,
}

impl Metadata {
    /// An error: the file is invalid.
    pub fn bad(&self, reason: impl Into<String>) -> Error {
        Error::BadGguf { file: self.file.clone(), reason: reason.into() }
    }

    /// An error: the file is valid but not supported.
    pub fn unsupported(&self, reason: impl Into<String>) -> Error {
        Error::UnsupportedGguf { file: self.file.clone(), reason: reason.into() }
    }

    fn wrong(&self, key: &str, expected: &str) -> Error {
        self.bad(format!("metadata `{key}` is not {expected}"))
    }

    fn required<T>(&self, key: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| self.bad(format!("metadata `{key}` is missing")))
    }

    /// An optional string.
    pub fn opt_str(&self, key: &str) -> Result<Option<&str>> {
        match self.entries.get(key) {
            None => Ok(None),
            Some(Value::String(value)) => Ok(Some(value)),
            Some(_) => Err(self.wrong(key, "a string")),
        }
    }

    /// A required string.
    pub fn str(&self, key: &str) -> Result<&str> {
        self.required(key, self.opt_str(key)?)
    }

    /// An optional non-negative integer of any width. An array of equal numbers (one per layer) counts as that number.
    pub fn opt_usize(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.entries.get(key) else { return Ok(None) };
        let found = match value {
            Value::Array(layers) => {
                let mut values = layers.iter().map(integer);
                let first = values.next().flatten();
                if !values.all(|value| value == first) {
                    return Err(self.unsupported(format!("its layers have different values of `{key}`")));
                }
                first
            }
            value => integer(value),
        };
        match found.and_then(|value| usize::try_from(value).ok()) {
            Some(value) => Ok(Some(value)),
            None => Err(self.wrong(key, "a non-negative integer")),
        }
    }

    /// A required non-negative integer.
    pub fn usize(&self, key: &str) -> Result<usize> {
        self.required(key, self.opt_usize(key)?)
    }

    /// An optional number. An f32 is converted by its shortest decimal form: `1e-5`, not `9.99999974e-6`.
    pub fn opt_f64(&self, key: &str) -> Result<Option<f64>> {
        match self.entries.get(key) {
            None => Ok(None),
            Some(Value::F32(value)) => Ok(Some(decimal(*value))),
            Some(Value::F64(value)) => Ok(Some(*value)),
            Some(_) => Err(self.wrong(key, "a number")),
        }
    }

    /// A required number.
    pub fn f64(&self, key: &str) -> Result<f64> {
        self.required(key, self.opt_f64(key)?)
    }

    /// An optional boolean.
    pub fn opt_bool(&self, key: &str) -> Result<Option<bool>> {
        match self.entries.get(key) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(_) => Err(self.wrong(key, "a boolean")),
        }
    }

    /// An optional list of strings.
    pub fn opt_strings(&self, key: &str) -> Result<Option<Vec<&str>>> {
        self.list(key, "a list of strings", |value| match value {
            Value::String(value) => Some(value.as_str()),
            _ => None,
        })
    }

    /// A required list of strings.
    pub fn strings(&self, key: &str) -> Result<Vec<&str>> {
        self.required(key, self.opt_strings(key)?)
    }

    /// An optional list of non-negative integers.
    pub fn opt_integers(&self, key: &str) -> Result<Option<Vec<u64>>> {
        self.list(key, "a list of non-negative integers", integer)
    }

    /// An optional list of 32-bit floats.
    pub fn opt_floats(&self, key: &str) -> Result<Option<Vec<f32>>> {
        self.list(key, "a list of f32", |value| match value {
            Value::F32(value) => Some(*value),
            _ => None,
        })
    }

    fn list<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        element: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<Vec<T>>> {
        match self.entries.get(key) {
            None => Ok(None),
            Some(Value::Array(values)) => {
                let list: Option<Vec<T>> = values.iter().map(element).collect();
                list.map(Some).ok_or_else(|| self.wrong(key, expected))
            }
            Some(_) => Err(self.wrong(key, expected)),
        }
    }

    /// An optional token id below `vocab_size`.
    pub fn opt_token_id(&self, key: &str, vocab_size: usize) -> Result<Option<usize>> {
        match self.opt_usize(key)? {
            // llama.cpp's converters write this value for "none".
            Some(id) if id == u32::MAX as usize => Ok(None),
            Some(id) if id >= vocab_size => {
                Err(self.bad(format!("metadata `{key}` is {id}, outside the vocabulary of {vocab_size}")))
            }
            id => Ok(id),
        }
    }
}

fn integer(value: &Value) -> Option<u64> {
    match *value {
        Value::U8(value) => Some(value.into()),
        Value::U16(value) => Some(value.into()),
        Value::U32(value) => Some(value.into()),
        Value::U64(value) => Some(value),
        Value::I8(value) => value.try_into().ok(),
        Value::I16(value) => value.try_into().ok(),
        Value::I32(value) => value.try_into().ok(),
        Value::I64(value) => value.try_into().ok(),
        _ => None,
    }
}

/// The f64 with the shortest decimal form of `value`.
pub(super) fn decimal(value: f32) -> f64 {
    value.to_string().parse().expect("a float prints as a float")
}

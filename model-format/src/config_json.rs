//! [`ConfigJson`]: typed access to the fields of a JSON configuration. Errors name the file and the field.

use serde_json::Value;

use crate::{Error, Result};

/// A parsed configuration and its file name for errors.
///
/// The accessors fail with [`Error::MissingField`] for a missing required field, and with [`Error::BadField`] for a
/// field of another type. A field that is null counts as missing.
#[derive(Debug, Clone)]
pub struct ConfigJson {
    /// The file, and the path within it if this is an inner object.
    pub file: String,
    /// The content, an object.
    pub value: Value,
}

impl ConfigJson {
    /// Parses `json`.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] if it is not a JSON object.
    pub fn parse(file: &str, json: &str) -> Result<ConfigJson> {
        let malformed = |reason: String| Error::Malformed { file: file.into(), reason };
        let value: Value = serde_json::from_str(json).map_err(|e| malformed(e.to_string()))?;
        if !value.is_object() {
            return Err(malformed("not a JSON object".into()));
        }
        Ok(ConfigJson { file: file.into(), value })
    }

    fn field(&self, name: &str) -> Result<&Value> {
        self.value
            .get(name)
            .filter(|v| !v.is_null())
            .ok_or_else(|| Error::MissingField { file: self.file.clone(), field: name.into() })
    }

    /// The error for a field with an invalid value.
    pub fn bad(&self, name: &str, expected: &str, found: &Value) -> Error {
        Error::BadField {
            file: self.file.clone(),
            field: name.into(),
            expected: expected.into(),
            found: found.to_string(),
        }
    }

    /// A required string.
    pub fn str(&self, name: &str) -> Result<&str> {
        let value = self.field(name)?;
        value.as_str().ok_or_else(|| self.bad(name, "a string", value))
    }

    /// A required non-negative integer.
    pub fn usize(&self, name: &str) -> Result<usize> {
        let value = self.field(name)?;
        value
            .as_u64()
            .and_then(|v| usize::try_from(v).ok())
            .ok_or_else(|| self.bad(name, "a non-negative integer", value))
    }

    /// A non-negative integer, or `default` if the field is missing.
    pub fn usize_or(&self, name: &str, default: usize) -> Result<usize> {
        if self.value.get(name).is_none_or(Value::is_null) { Ok(default) } else { self.usize(name) }
    }

    /// A non-negative integer, or `None` if the field is missing.
    pub fn opt_usize(&self, name: &str) -> Result<Option<usize>> {
        if self.value.get(name).is_none_or(Value::is_null) { Ok(None) } else { self.usize(name).map(Some) }
    }

    /// A number, or `None` if the field is missing.
    pub fn opt_f64(&self, name: &str) -> Result<Option<f64>> {
        if self.value.get(name).is_none_or(Value::is_null) { Ok(None) } else { self.f64(name).map(Some) }
    }

    /// A required number.
    pub fn f64(&self, name: &str) -> Result<f64> {
        self.to_f64(name, self.field(name)?)
    }

    /// A number, or `default` if the field is missing.
    pub fn f64_or(&self, name: &str, default: f64) -> Result<f64> {
        if self.value.get(name).is_none_or(Value::is_null) { Ok(default) } else { self.f64(name) }
    }

    /// Converts `value` to a number. `name` is its field, for the error.
    pub fn to_f64(&self, name: &str, value: &Value) -> Result<f64> {
        value.as_f64().ok_or_else(|| self.bad(name, "a number", value))
    }

    /// A boolean, or `default` if the field is missing.
    pub fn bool_or(&self, name: &str, default: bool) -> Result<bool> {
        match self.value.get(name) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| self.bad(name, "true or false", value)),
        }
    }

    /// The field `rope_parameters` of transformers 5. Models with two kinds of attention layers have an inner object
    /// for each `kind` (`full_attention`, `sliding_attention`).
    pub fn rope_parameters(&self, kind: &str) -> Option<&Value> {
        let rope = self.value.get("rope_parameters").filter(|rope| rope.is_object())?;
        match (rope.get(kind), rope.get("rope_theta")) {
            (Some(inner), _) => Some(inner).filter(|inner| inner.is_object()),
            // A flat object applies to full attention. An object with other kinds only has no fields of its own.
            (None, theta) => {
                Some(rope).filter(|_| kind == "full_attention" && (theta.is_some() || has_rope_type(rope)))
            }
        }
    }
}

fn has_rope_type(rope: &Value) -> bool {
    rope.get("rope_type").is_some()
}

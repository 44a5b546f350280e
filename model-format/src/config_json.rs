//! [`ConfigJson`]: typed fields of a JSON configuration file, with errors that name file and field.

use serde_json::Value;

use crate::{Error, Result};

/// A parsed configuration that names itself in errors.
#[derive(Debug, Clone)]
pub struct ConfigJson {
    /// Which file this is.
    pub file: String,
    /// Its content.
    pub value: Value,
}

impl ConfigJson {
    /// Parses `json`, which must be an object.
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

    /// The error for a field that is there and wrong.
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

    /// A non-negative integer, or `default` where the field is absent or null.
    pub fn usize_or(&self, name: &str, default: usize) -> Result<usize> {
        if self.value.get(name).is_none_or(Value::is_null) { Ok(default) } else { self.usize(name) }
    }

    /// A non-negative integer, or `None` where the field is absent or null.
    pub fn opt_usize(&self, name: &str) -> Result<Option<usize>> {
        if self.value.get(name).is_none_or(Value::is_null) { Ok(None) } else { self.usize(name).map(Some) }
    }

    /// A number, or `None` where the field is absent or null.
    pub fn opt_f64(&self, name: &str) -> Result<Option<f64>> {
        if self.value.get(name).is_none_or(Value::is_null) { Ok(None) } else { self.f64(name).map(Some) }
    }

    /// A required number.
    pub fn f64(&self, name: &str) -> Result<f64> {
        self.to_f64(name, self.field(name)?)
    }

    /// A number, or `default` where the field is absent or null.
    pub fn f64_or(&self, name: &str, default: f64) -> Result<f64> {
        if self.value.get(name).is_none_or(Value::is_null) { Ok(default) } else { self.f64(name) }
    }

    /// `value` as a number; `name` is for the error.
    pub fn to_f64(&self, name: &str, value: &Value) -> Result<f64> {
        value.as_f64().ok_or_else(|| self.bad(name, "a number", value))
    }

    /// A boolean, or `default` where the field is absent or null.
    pub fn bool_or(&self, name: &str, default: bool) -> Result<bool> {
        match self.value.get(name) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| self.bad(name, "true or false", value)),
        }
    }

    /// transformers 5's `rope_parameters`; for models with two kinds of layers, those of one `kind`.
    pub fn rope_parameters(&self, kind: &str) -> Option<&Value> {
        let rope = self.value.get("rope_parameters").filter(|rope| rope.is_object())?;
        match (rope.get(kind), rope.get("rope_theta")) {
            (Some(inner), _) => Some(inner).filter(|inner| inner.is_object()),
            // The other kind's are there, or a plain list of fields that stands for the layers without a window.
            (None, theta) => Some(rope).filter(|_| kind == "full_attention" && (theta.is_some() || rope_type(rope))),
        }
    }
}

fn rope_type(rope: &Value) -> bool {
    rope.get("rope_type").is_some()
}

//! [`difference`]: finds the first difference between two fingerprints.

use serde_json::Value;

/// The first difference between the JSON values `was` and `is`: its path, the old and the new value as JSON. The path
/// starts with `name`, if that is not empty.
pub fn difference(name: &str, was: &Value, is: &Value) -> Option<(String, String, String)> {
    match (was, is) {
        (Value::Object(was), Value::Object(is)) => {
            let names = is.keys().chain(was.keys().filter(|name| !is.contains_key(*name)));
            names.into_iter().find_map(|field| {
                let value = |of: &serde_json::Map<String, Value>| of.get(field).cloned().unwrap_or_default();
                let name = if name.is_empty() { field.clone() } else { format!("{name}.{field}") };
                difference(&name, &value(was), &value(is))
            })
        }
        (Value::Array(was), Value::Array(is)) if was.len() == is.len() => {
            let pairs = was.iter().zip(is).enumerate();
            pairs.into_iter().find_map(|(i, (was, is))| difference(&format!("{name}.{i}"), was, is))
        }
        _ if was == is => None,
        _ => Some((name.to_owned(), was.to_string(), is.to_string())),
    }
}

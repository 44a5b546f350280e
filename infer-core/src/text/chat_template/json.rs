//! The filter `tojson`: JSON in the exact format of Python's `json.dumps`, because models were trained on it.

use minijinja::value::{Kwargs, Value as JinjaValue};
use minijinja::{Error, ErrorKind};
use model_format::PythonJson;

use super::keyword_args::either;

type Result<T> = std::result::Result<T, Error>;

/// Limit of the spaces per indentation level.
const MAX_INDENT: usize = 100;

/// `ensure_ascii`, `indent`, `separators` and `sort_keys` are the parameters of `json.dumps`. Unlike there, `ensure_ascii` is
/// false by default.
pub fn tojson(
    value: &JinjaValue,
    ensure_ascii: Option<JinjaValue>,
    indent: Option<JinjaValue>,
    separators: Option<JinjaValue>,
    options: Kwargs,
) -> Result<String> {
    let ensure_ascii = either(ensure_ascii, &options, "ensure_ascii")?.is_some_and(|value| value.is_true());
    let indent = match either(indent, &options, "indent")?.filter(|indent| !indent.is_none()) {
        None => None,
        Some(indent) => Some(match indent.as_str() {
            Some(text) => text.to_string(),
            None => " ".repeat(usize::try_from(indent)?.min(MAX_INDENT)),
        }),
    };
    let separators = match either(separators, &options, "separators")?.filter(|separators| !separators.is_none()) {
        Some(separators) => {
            let texts: Vec<String> = separators.try_iter()?.map(|text| text.to_string()).collect();
            let two = <[String; 2]>::try_from(texts).ok();
            two.ok_or_else(|| invalid("`separators` must be two texts: one between items, one after keys"))?
        }
        None => PythonJson::usual_separators(indent.is_some()),
    };
    let sort_keys = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.assert_all_used()?;
    let value =
        serde_json::to_value(value).map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    Ok(PythonJson { ensure_ascii, indent, separators, sort_keys }.write(&value))
}

fn invalid(reason: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason.to_string())
}

//! The filter `tojson`: JSON as Python's `json.dumps` writes it, which is what models saw in training.

use minijinja::value::{Kwargs, Value as JinjaValue};
use minijinja::{Error, ErrorKind};
use serde_json::Value;

use super::python::either;

type Result<T> = std::result::Result<T, Error>;

/// Spaces that a level may be indented by.
const MOST_INDENT: usize = 100;

/// `ensure_ascii`, `indent`, `separators` and `sort_keys` are those of `json.dumps`; by default characters stay what they are.
pub fn tojson(
    value: &JinjaValue,
    ensure_ascii: Option<JinjaValue>,
    indent: Option<JinjaValue>,
    separators: Option<JinjaValue>,
    options: Kwargs,
) -> Result<String> {
    let is_ascii = either(ensure_ascii, &options, "ensure_ascii")?.is_some_and(|value| value.is_true());
    let indent = match either(indent, &options, "indent")?.filter(|indent| !indent.is_none()) {
        None => None,
        Some(indent) => Some(match indent.as_str() {
            Some(text) => text.to_string(),
            None => " ".repeat(usize::try_from(indent)?.min(MOST_INDENT)),
        }),
    };
    let separators = match either(separators, &options, "separators")?.filter(|separators| !separators.is_none()) {
        Some(separators) => {
            let texts: Vec<String> = separators.try_iter()?.map(|text| text.to_string()).collect();
            let two = <[String; 2]>::try_from(texts).ok();
            two.ok_or_else(|| invalid("`separators` are two: between items, and behind keys"))?
        }
        None => [if indent.is_some() { "," } else { ", " }, ": "].map(str::to_string),
    };
    let sorts = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.assert_all_used()?;
    let value =
        serde_json::to_value(value).map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    let mut writer = Writer { out: String::new(), is_ascii, indent, separators, sorts };
    writer.value(&value, 0);
    Ok(writer.out)
}

struct Writer {
    out: String,
    is_ascii: bool,
    indent: Option<String>,
    separators: [String; 2],
    sorts: bool,
}

impl Writer {
    fn value(&mut self, value: &Value, level: usize) {
        match value {
            Value::Null => self.out.push_str("null"),
            Value::Bool(value) => self.out.push_str(if *value { "true" } else { "false" }),
            Value::Number(number) => match number.as_f64() {
                Some(float) if number.is_f64() => self.out.push_str(&float_repr(float)),
                _ => self.out.push_str(&number.to_string()),
            },
            Value::String(text) => self.text(text),
            Value::Array(items) => {
                self.within(['[', ']'], level, items.iter(), |writer, item, level| writer.value(item, level));
            }
            Value::Object(entries) => {
                let mut entries: Vec<_> = entries.iter().collect();
                if self.sorts {
                    entries.sort_by_key(|(key, _)| *key);
                }
                self.within(['{', '}'], level, entries.into_iter(), |writer, (key, value), level| {
                    writer.text(key);
                    writer.out.push_str(&writer.separators[1].clone());
                    writer.value(value, level);
                });
            }
        }
    }

    fn within<T>(
        &mut self,
        [open, close]: [char; 2],
        level: usize,
        items: impl ExactSizeIterator<Item = T>,
        write: impl Fn(&mut Writer, T, usize),
    ) {
        let is_empty = items.len() == 0;
        self.out.push(open);
        for (i, item) in items.enumerate() {
            if i > 0 {
                self.out.push_str(&self.separators[0].clone());
            }
            self.line(level + 1);
            write(self, item, level + 1);
        }
        if !is_empty {
            self.line(level);
        }
        self.out.push(close);
    }

    fn line(&mut self, level: usize) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            self.out.push_str(&indent.repeat(level));
        }
    }

    fn text(&mut self, text: &str) {
        let quoted = Value::from(text).to_string();
        if !self.is_ascii {
            return self.out.push_str(&quoted);
        }
        for c in quoted.chars() {
            // 0x7f is ASCII to Python too.
            if c.is_ascii() {
                self.out.push(c);
            } else {
                self.out.extend(c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")));
            }
        }
    }
}

/// A number as Python writes it: without an exponent from 0.0001 up to 1e16.
fn float_repr(number: f64) -> String {
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        return format!("{number:?}");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

fn invalid(reason: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason.to_string())
}

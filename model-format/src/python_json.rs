//! Writes JSON byte for byte like Python's `json.dumps`. MLC's files have this form, and chat templates render tool
//! definitions in the form that models saw in training.

use serde_json::Value;

/// The arguments of `json.dumps` with the same names.
pub struct PythonJson {
    /// True to escape non-ASCII characters.
    pub ensure_ascii: bool,
    /// Indentation per level. `None`: everything in one line.
    pub indent: Option<String>,
    /// Separator between items, and separator after keys.
    pub separators: [String; 2],
    /// True to sort the keys of objects.
    pub sort_keys: bool,
}

impl PythonJson {
    /// `json.dumps(value, indent=spaces)`: all other arguments have their defaults.
    pub fn indented(spaces: usize) -> PythonJson {
        let indent = Some(" ".repeat(spaces));
        let separators = PythonJson::usual_separators(true);
        PythonJson { ensure_ascii: true, indent, separators, sort_keys: false }
    }

    /// Python's default of `separators`, which depends on the presence of `indent`.
    pub fn usual_separators(is_indented: bool) -> [String; 2] {
        [if is_indented { "," } else { ", " }, ": "].map(str::to_string)
    }

    /// Writes `value` like Python: floats by `repr`, no newline at the end.
    pub fn write(&self, value: &Value) -> String {
        let mut out = String::new();
        self.value(&mut out, value, 0);
        out
    }

    fn value(&self, out: &mut String, value: &Value, level: usize) {
        match value {
            Value::Null => out.push_str("null"),
            Value::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            Value::Number(number) => match number.as_f64() {
                Some(value) if number.is_f64() => out.push_str(&float(value)),
                _ => out.push_str(&number.to_string()),
            },
            Value::String(text) => self.text(out, text),
            Value::Array(items) => {
                self.within(out, ['[', ']'], level, items.iter(), |out, item| self.value(out, item, level + 1));
            }
            Value::Object(entries) => {
                let mut entries: Vec<_> = entries.iter().collect();
                if self.sort_keys {
                    entries.sort_by_key(|(key, _)| *key);
                }
                self.within(out, ['{', '}'], level, entries.into_iter(), |out, (key, value)| {
                    self.text(out, key);
                    out.push_str(&self.separators[1]);
                    self.value(out, value, level + 1);
                });
            }
        }
    }

    fn within<T>(
        &self,
        out: &mut String,
        [open, close]: [char; 2],
        level: usize,
        items: impl ExactSizeIterator<Item = T>,
        write: impl Fn(&mut String, T),
    ) {
        let is_empty = items.len() == 0;
        out.push(open);
        for (i, item) in items.enumerate() {
            if i > 0 {
                out.push_str(&self.separators[0]);
            }
            self.line(out, level + 1);
            write(out, item);
        }
        if !is_empty {
            self.line(out, level);
        }
        out.push(close);
    }

    fn line(&self, out: &mut String, level: usize) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            out.push_str(&indent.repeat(level));
        }
    }

    fn text(&self, out: &mut String, text: &str) {
        let quoted = Value::from(text).to_string();
        if !self.ensure_ascii {
            return out.push_str(&quoted);
        }
        for c in quoted.chars() {
            // Python also leaves 0x7f unescaped.
            if c.is_ascii() {
                out.push(c);
            } else {
                out.extend(c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")));
            }
        }
    }
}

/// Python's `repr` of a float: the shortest digits that parse to the same number. Below 1e-4 and from 1e16 on, with an
/// exponent of at least two digits.
fn float(v: f64) -> String {
    let scientific = format!("{v:e}");
    let (digits, exponent) = scientific.split_once('e').expect("{:e} writes an exponent");
    let exponent: i32 = exponent.parse().expect("the exponent of {:e} is a number");
    if (-4..16).contains(&exponent) {
        return format!("{v:?}");
    }
    format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_equal_python_repr() {
        for (v, expected) in [
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e-5, "1e-05"),
            (9.999999747378752e-06, "9.999999747378752e-06"),
            (0.0001, "0.0001"),
            (0.00012345, "0.00012345"),
            (500000.0, "500000.0"),
            (1e15, "1000000000000000.0"),
            (9999999999999998.0, "9999999999999998.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (-0.0, "-0.0"),
            (4.5112195121951215, "4.5112195121951215"),
            (5e-324, "5e-324"),
        ] {
            assert_eq!(float(v), expected);
        }
    }

    #[test]
    fn ensure_ascii_escapes_text() {
        let value = serde_json::json!({"a": ["é\u{1f600}\u{7f}\u{1}\"\\/\n"], "b": [], "c": {}, "d": null});
        let expected = "{\n  \"a\": [\n    \"\\u00e9\\ud83d\\ude00\u{7f}\\u0001\\\"\\\\/\\n\"\n  ],\n  \"b\": [],\n  \"c\": {},\n  \"d\": null\n}";
        assert_eq!(PythonJson::indented(2).write(&value), expected);
    }
}

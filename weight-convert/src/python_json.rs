//! JSON with the bytes that Python's `json.dump(value, file, indent=N)` writes.

use std::fmt::Write;

use serde_json::Value;

/// `value` as Python writes it: ASCII only, floats by `repr`, no newline at the end.
pub(crate) fn to_python_json(value: &Value, indent: usize) -> String {
    let mut out = String::new();
    write_value(&mut out, value, indent, 0);
    out
}

fn write_value(out: &mut String, value: &Value, indent: usize, depth: usize) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
        Value::Number(n) => match n.as_f64() {
            Some(v) if n.is_f64() => out.push_str(&python_float(v)),
            _ => out.push_str(&n.to_string()),
        },
        Value::String(s) => write_string(out, s),
        Value::Array(items) => write_items(out, ('[', ']'), items.iter(), indent, depth, |out, item| {
            write_value(out, item, indent, depth + 1);
        }),
        Value::Object(fields) => write_items(out, ('{', '}'), fields.iter(), indent, depth, |out, (key, item)| {
            write_string(out, key);
            out.push_str(": ");
            write_value(out, item, indent, depth + 1);
        }),
    }
}

fn write_items<T>(
    out: &mut String,
    (open, close): (char, char),
    items: impl ExactSizeIterator<Item = T>,
    indent: usize,
    depth: usize,
    mut write_item: impl FnMut(&mut String, T),
) {
    let last = items.len();
    out.push(open);
    for (i, item) in items.enumerate() {
        newline(out, indent * (depth + 1));
        write_item(out, item);
        if i + 1 < last {
            out.push(',');
        }
    }
    if last > 0 {
        newline(out, indent * depth);
    }
    out.push(close);
}

fn newline(out: &mut String, spaces: usize) {
    out.push('\n');
    out.extend(std::iter::repeat_n(' ', spaces));
}

fn write_string(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            ' '..='\u{7f}' => out.push(c),
            _ => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
        }
    }
    out.push('"');
}

/// Python's `repr` of a float: the shortest digits that read back as the same number, with an exponent of at least two
/// digits below 1e-4 and from 1e16 on.
fn python_float(v: f64) -> String {
    let scientific = format!("{v:e}");
    let (digits, exponent) = scientific.split_once('e').expect("{:e} writes an exponent");
    let exponent: i32 = exponent.parse().expect("{:e} writes a number there");
    if (-4..16).contains(&exponent) {
        return format!("{v:?}");
    }
    format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_as_python_writes_them() {
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
            assert_eq!(python_float(v), expected);
        }
    }

    #[test]
    fn texts_are_ascii() {
        let value = serde_json::json!({"a": ["é\u{1f600}\u{7f}\u{1}\"\\/\n"], "b": [], "c": {}, "d": null});
        let expected = "{\n  \"a\": [\n    \"\\u00e9\\ud83d\\ude00\u{7f}\\u0001\\\"\\\\/\\n\"\n  ],\n  \"b\": [],\n  \"c\": {},\n  \"d\": null\n}";
        assert_eq!(to_python_json(&value, 2), expected);
    }
}

//! Python methods and Jinja2 filters and tests that minijinja lacks or implements differently. `json.rs` has `tojson`.
//!
//! Not supported: `%` formatting of strings, and `loop.last` over the characters of a string.

use minijinja::value::{Kwargs, Tuple, Value, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State, filters};
use minijinja_contrib::pycompat;

use super::{json::tojson, keyword_args::either};

type Result<T> = std::result::Result<T, Error>;

/// Width limit of padding and indentation, so that a hostile template cannot use up memory.
const MAX_WIDTH: usize = 10_000;

/// Adds the methods, filters and tests to `environment`.
pub fn add_to(environment: &mut Environment<'_>) {
    environment.set_unknown_method_callback(method);
    environment.add_test("callable", |value: &Value| value.kind() == ValueKind::Plain);
    environment.add_test("sequence", is_sequence);
    for name in ["count", "length"] {
        environment.add_filter(name, length);
    }
    for name in ["d", "default"] {
        environment.add_filter(name, default);
    }
    for name in ["e", "escape"] {
        environment.add_filter(name, escape);
    }
    environment
        .add_filter("center", |text: &str, most: Option<usize>| filled(text, most.unwrap_or(80), Side::Both, ' '));
    environment.add_filter("float", float);
    environment.add_filter("indent", indent);
    environment.add_filter("int", int);
    environment.add_filter("replace", |text: String, old: &str, new: &str, most: Option<usize>| match most {
        Some(most) => text.replacen(old, new, most),
        None => text.replace(old, new),
    });
    environment.add_filter("tojson", tojson);
    environment.add_filter("trim", |text: String, chars: Option<&str>| stripped(&text, chars, true, true).to_string());
    environment.add_filter("wordcount", |text: &str| {
        text.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|word| !word.is_empty()).count()
    });
}

/// True for values with a length and items in Python. Texts and dicts are such values too.
fn is_sequence(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Undefined | ValueKind::String | ValueKind::Seq | ValueKind::Map)
}

fn length(value: &Value) -> Result<usize> {
    if value.is_undefined() { Ok(0) } else { filters::length(value) }
}

fn default(value: &Value, other: Option<Value>, boolean: Option<bool>, options: Kwargs) -> Result<Value> {
    let other = either(other, &options, "default_value")?.unwrap_or_else(|| Value::from(""));
    let boolean = either(boolean, &options, "boolean")?.unwrap_or(false);
    options.assert_all_used()?;
    Ok(if value.is_undefined() || boolean && !value.is_true() { other } else { value.clone() })
}

fn escape(text: String) -> String {
    let escaped = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    escaped.replace('\'', "&#39;").replace('"', "&#34;")
}

/// A value that is not a number gives the default instead of an error.
fn int(
    state: &State<'_, '_>,
    value: &Value,
    other: Option<Value>,
    base: Option<u32>,
    options: Kwargs,
) -> Result<Value> {
    let other = either(other, &options, "default")?.unwrap_or_else(|| Value::from(0));
    filters::int(state, value, Some(other), base, options)
}

fn float(state: &State<'_, '_>, value: &Value, other: Option<Value>, options: Kwargs) -> Result<Value> {
    let other = either(other, &options, "default")?.unwrap_or_else(|| Value::from(0.0));
    filters::float(state, value, Some(other), options)
}

fn indent(
    text: String,
    by: Option<Value>,
    first: Option<bool>,
    blank: Option<bool>,
    options: Kwargs,
) -> Result<String> {
    let by = either(by, &options, "width")?.unwrap_or_else(|| Value::from(4));
    let by = match by.as_str() {
        Some(text) => text.to_string(),
        None => " ".repeat(width(by.try_into()?)?),
    };
    let first = either(first, &options, "first")?.unwrap_or(false);
    let blank = either(blank, &options, "blank")?.unwrap_or(false);
    options.assert_all_used()?;
    // Like in Jinja2, this keeps a line break at the end.
    let text = text + "\n";
    let mut out = String::new();
    for (i, line) in lines(&text, false).into_iter().enumerate() {
        out.push_str(if i > 0 { "\n" } else { "" });
        if if i == 0 { first } else { blank || !line.is_empty() } {
            out.push_str(&by);
        }
        out.push_str(line);
    }
    Ok(out)
}

fn method(state: &mut State<'_, '_>, value: &Value, method: &str, args: &[Value]) -> Result<Value> {
    let found = match value.kind() {
        ValueKind::String => string_method(value.as_str().unwrap_or_default(), method, args)?,
        ValueKind::Seq | ValueKind::Map => container_method(value, method, args)?,
        _ => None,
    };
    found.map_or_else(|| pycompat::unknown_method_callback(state, value, method, args), Ok)
}

fn container_method(value: &Value, method: &str, args: &[Value]) -> Result<Option<Value>> {
    Ok(match method {
        "copy" => {
            let () = from_args(args)?;
            // Values are immutable, so a copy is the value itself.
            Some(value.clone())
        }
        "index" if value.kind() == ValueKind::Seq => {
            let (wanted,): (&Value,) = from_args(args)?;
            let found = value.try_iter()?.position(|item| item == *wanted);
            Some(Value::from(found.ok_or_else(|| invalid(format!("{wanted} is not in list")))?))
        }
        _ => None,
    })
}

fn string_method(text: &str, method: &str, args: &[Value]) -> Result<Option<Value>> {
    let from = |text: &str| Some(Value::from(text));
    Ok(match method {
        "strip" | "lstrip" | "rstrip" => {
            let (chars,): (Option<&str>,) = from_args(args)?;
            from(stripped(text, chars, method != "rstrip", method != "lstrip"))
        }
        "removeprefix" | "removesuffix" => {
            let (end,): (&str,) = from_args(args)?;
            let rest = if method == "removeprefix" { text.strip_prefix(end) } else { text.strip_suffix(end) };
            from(rest.unwrap_or(text))
        }
        "split" | "rsplit" => {
            let (separator, most, options): (Option<&str>, Option<i64>, Kwargs) = from_args(args)?;
            let separator = either(separator, &options, "sep")?;
            let most = either(most, &options, "maxsplit")?.and_then(|most| usize::try_from(most).ok());
            options.assert_all_used()?;
            Some(split(text, separator, most, method == "rsplit")?.into_iter().map(Value::from).collect())
        }
        "splitlines" => {
            let (keep, options): (Option<bool>, Kwargs) = from_args(args)?;
            let keep = either(keep, &options, "keepends")?.unwrap_or(false);
            Some(lines(text, keep).into_iter().map(Value::from).collect())
        }
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            let is_first = method == "partition";
            let cut = if is_first { text.split_once(separator) } else { text.rsplit_once(separator) };
            let parts = match cut {
                Some((before, after)) => [before, separator, after],
                None if is_first => [text, "", ""],
                None => ["", "", text],
            };
            Some(Value::from(Tuple::from(parts.map(Value::from))))
        }
        "index" | "rindex" => {
            let (wanted,): (&str,) = from_args(args)?;
            let at = if method == "index" { text.find(wanted) } else { text.rfind(wanted) };
            let at = at.ok_or_else(|| invalid("substring not found"))?;
            Some(Value::from(text[..at].chars().count()))
        }
        "ljust" | "rjust" | "center" => {
            let (most, fill): (usize, Option<char>) = from_args(args)?;
            let side = match method {
                "ljust" => Side::Right,
                "rjust" => Side::Left,
                _ => Side::Both,
            };
            Some(Value::from(filled(text, most, side, fill.unwrap_or(' '))?))
        }
        "zfill" => {
            let (most,): (usize,) = from_args(args)?;
            let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
            let sign = &text[..text.len() - digits.len()];
            let digits = filled(digits, most.saturating_sub(sign.len()), Side::Left, '0')?;
            Some(Value::from(format!("{sign}{digits}")))
        }
        "casefold" => from(&text.to_lowercase()),
        "swapcase" => {
            let swapped = text.chars().flat_map(|c| {
                let (upper, lower) = (c.to_uppercase(), c.to_lowercase());
                if c.is_uppercase() { lower.collect::<Vec<_>>() } else { upper.collect() }
            });
            Some(Value::from(swapped.collect::<String>()))
        }
        _ => None,
    })
}

/// White space by Python's definition, which includes the separators U+001C to U+001F.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

fn stripped<'a>(text: &'a str, chars: Option<&str>, left: bool, right: bool) -> &'a str {
    let is_stripped = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
    let text = if left { text.trim_start_matches(is_stripped) } else { text };
    if right { text.trim_end_matches(is_stripped) } else { text }
}

/// Splits at `separator`. Without one, splits at runs of white space, and ignores those at the ends.
fn split<'a>(text: &'a str, separator: Option<&str>, most: Option<usize>, from_right: bool) -> Result<Vec<&'a str>> {
    if separator == Some("") {
        return Err(invalid("empty separator"));
    }
    let mut parts = Vec::new();
    let trimmed =
        |text: &'a str| if separator.is_none() { stripped(text, None, !from_right, from_right) } else { text };
    let mut rest = trimmed(text);
    while most.is_none_or(|most| parts.len() < most) {
        let found = match (separator, from_right) {
            (Some(separator), false) => rest.split_once(separator),
            (Some(separator), true) => rest.rsplit_once(separator),
            (None, false) => rest.split_once(is_space),
            (None, true) => rest.rsplit_once(is_space),
        };
        let Some((before, after)) = found else { break };
        let (part, left) = if from_right { (after, before) } else { (before, after) };
        parts.push(part);
        rest = trimmed(left);
    }
    if separator.is_some() || !rest.is_empty() {
        parts.push(rest);
    }
    if from_right {
        parts.reverse();
    }
    Ok(parts)
}

fn lines(text: &str, keeps_ends: bool) -> Vec<&str> {
    let is_end = |c: char| {
        matches!(c, '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}')
    };
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(end) = rest.find(is_end) {
        let length =
            if rest[end..].starts_with("\r\n") { 2 } else { rest[end..].chars().next().map_or(0, char::len_utf8) };
        lines.push(&rest[..if keeps_ends { end + length } else { end }]);
        rest = &rest[end + length..];
    }
    if !rest.is_empty() {
        lines.push(rest);
    }
    lines
}

#[derive(Clone, Copy)]
enum Side {
    Left,
    Right,
    Both,
}

/// Pads a text with `fill` to `most` characters, on one side or on both.
fn filled(text: &str, most: usize, side: Side, fill: char) -> Result<String> {
    let missing = width(most)?.saturating_sub(text.chars().count());
    let left = match side {
        Side::Left => missing,
        Side::Right => 0,
        // If the padding is odd, Python puts the extra character on the left for odd widths.
        Side::Both => missing / 2 + (missing & most & 1),
    };
    let times = |n: usize| std::iter::repeat_n(fill, n);
    Ok(times(left).chain(text.chars()).chain(times(missing - left)).collect())
}

fn width(width: usize) -> Result<usize> {
    if width > MAX_WIDTH { Err(invalid(format!("a width of {width} is more than {MAX_WIDTH}"))) } else { Ok(width) }
}

fn invalid(reason: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason.into())
}

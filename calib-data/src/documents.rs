//! [`read_documents`]: reads texts from a plain text file, JSON lines or parquet.
//!
//! A record of JSON lines or parquet has a text or a conversation. Plain text and JSON lines may be compressed with
//! gzip.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    path::Path,
};

use flate2::bufread::MultiGzDecoder;
use serde_json::Value;

use crate::{Error, Result, parquet};

/// Maximum number of bytes read from one source: 64 MiB, about sixteen million tokens of English text.
pub const TEXT_LIMIT: usize = 64 << 20;

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant` or another role of the model's chat template.
    pub role: String,
    /// Text of the message.
    pub content: String,
}

/// The texts of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Documents {
    /// The independent texts, in the order of the file.
    pub texts: Vec<String>,
    /// True if [`TEXT_LIMIT`] was reached and the rest of the file was not read.
    pub is_truncated: bool,
}

/// Selects the field of a record and joins records.
#[derive(Debug, Clone, Copy, Default)]
pub struct Records<'a> {
    /// Field that contains the text or the conversation. `None`: the field `text` or the field `messages`.
    pub column: Option<&'a str>,
    /// Separator that joins all records into one text. `None`: each record is a separate text.
    pub join: Option<&'a str>,
}

/// Layout of a file.
#[derive(Clone, Copy)]
enum Layout {
    Plain,
    Lines,
    Parquet,
}

/// Reads the texts of a file. The extension determines the layout:
///
/// - `.jsonl`, `.ndjson`, `.json`: one record per line, `{"text": ".."}` or
///   `{"messages": [{"role": "..", "content": ".."}]}`.
/// - `.parquet`: rows with a column `text` or `messages` of the same types.
/// - any other: the file is one plain text.
///
/// Plain text and JSON lines may have `.gz` appended for gzip compression. Records without text are skipped, except if
/// they are joined ([`Records::join`]).
///
/// `render_chat` renders a conversation as text by the model's chat template.
///
/// # Errors
///
/// [`Error::Read`], [`Error::Empty`], [`Error::NotUtf8`], [`Error::BadRecord`] (also for a conversation that
/// `render_chat` rejects) and [`Error::BadParquet`].
pub fn read_documents<E: std::fmt::Display>(
    path: &Path,
    records: Records<'_>,
    mut render_chat: impl FnMut(&[ChatMessage]) -> Result<String, E>,
) -> Result<Documents> {
    let render = &mut |messages: &[ChatMessage]| render_chat(messages).map_err(|error| error.to_string());
    let (layout, is_compressed) = layout(path);
    let mut collector = TextCollector { path, records, render, texts: Vec::new(), bytes: 0 };
    let is_truncated = match layout {
        Layout::Parquet => parquet::read(path, records.column, &mut |row, value| collector.add("row", row, value))?,
        _ => {
            let file = File::open(path).map_err(|source| Error::Read { path: path.into(), source })?;
            let file = BufReader::with_capacity(1 << 16, file);
            let mut reader: Box<dyn BufRead> =
                if is_compressed { Box::new(BufReader::new(MultiGzDecoder::new(file))) } else { Box::new(file) };
            match layout {
                Layout::Lines => collector.read_lines(reader.as_mut())?,
                _ => collector.read_plain(reader.as_mut())?,
            }
        }
    };
    let mut texts = collector.texts;
    match records.join {
        Some(join) => texts = vec![texts.join(join)],
        None => texts.retain(|text| !text.is_empty()),
    }
    if texts.iter().all(|text| text.trim().is_empty()) {
        return Err(Error::Empty { path: path.into() });
    }
    Ok(Documents { texts, is_truncated })
}

/// Layout by the file's extension, and true if it is compressed with gzip.
fn layout(path: &Path) -> (Layout, bool) {
    let name = path.file_name().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
    let (name, is_compressed) = match name.strip_suffix(".gz") {
        Some(rest) => (rest, true),
        None => (name.as_str(), false),
    };
    let layout = match name.rsplit_once('.') {
        Some((_, "jsonl" | "ndjson" | "json")) => Layout::Lines,
        // Parquet compresses internally. A gzipped parquet file is not supported.
        Some((_, "parquet")) if !is_compressed => Layout::Parquet,
        _ => Layout::Plain,
    };
    (layout, is_compressed)
}

/// Renders a conversation as text.
type Render<'a> = dyn FnMut(&[ChatMessage]) -> Result<String, String> + 'a;

/// Collects the texts of a file up to [`TEXT_LIMIT`].
struct TextCollector<'a> {
    path: &'a Path,
    records: Records<'a>,
    render: &'a mut Render<'a>,
    texts: Vec<String>,
    bytes: usize,
}

impl TextCollector<'_> {
    /// Reads the file as one text. Returns true if the limit cut the file.
    fn read_plain(&mut self, reader: &mut dyn BufRead) -> Result<bool> {
        let mut bytes = Vec::new();
        reader.take(TEXT_LIMIT as u64).read_to_end(&mut bytes).map_err(|source| self.read_error(source))?;
        let is_truncated = bytes.len() == TEXT_LIMIT && !reader.fill_buf().map_err(|e| self.read_error(e))?.is_empty();
        if is_truncated {
            // Drop the incomplete last line: the limit may fall inside a UTF-8 character.
            bytes.truncate(bytes.iter().rposition(|&b| b == b'\n').map_or(bytes.len(), |at| at + 1));
        }
        let text = String::from_utf8(bytes).map_err(|error| {
            let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = good.iter().filter(|&&b| b == b'\n').count() + 1;
            self.not_utf8(line, good)
        })?;
        // Some editors start a file with a byte order mark.
        self.texts.push(text.strip_prefix('\u{feff}').unwrap_or(&text).to_owned());
        Ok(is_truncated)
    }

    /// Reads one record per line and skips blank lines. Returns true if the limit stopped reading.
    fn read_lines(&mut self, reader: &mut dyn BufRead) -> Result<bool> {
        let mut bytes = Vec::new();
        for number in 1.. {
            bytes.clear();
            let read = reader.take(TEXT_LIMIT as u64).read_until(b'\n', &mut bytes);
            if read.map_err(|source| self.read_error(source))? == 0 {
                return Ok(false);
            }
            let line = std::str::from_utf8(&bytes).map_err(|e| self.not_utf8(number, &bytes[..e.valid_up_to()]))?;
            let line = if number == 1 { line.strip_prefix('\u{feff}').unwrap_or(line) } else { line };
            if line.trim().is_empty() {
                continue;
            }
            let value = serde_json::from_str(line).map_err(|error| self.bad("line", number, error.to_string()))?;
            if !self.add("line", number, &value)? {
                return Ok(true);
            }
        }
        unreachable!("the loop returns at the end of the file")
    }

    /// Adds the text of a record. Returns false if the limit is reached.
    fn add(&mut self, unit: &'static str, number: usize, record: &Value) -> Result<bool> {
        let text = self.text(record).map_err(|reason| self.bad(unit, number, reason))?;
        self.bytes += text.len();
        self.texts.push(text);
        Ok(self.bytes < TEXT_LIMIT)
    }

    /// The text of a record. The error is the reason for [`Error::BadRecord`].
    fn text(&mut self, record: &Value) -> Result<String, String> {
        let field = |name: &str| record.get(name).filter(|value| !value.is_null());
        if let Some(column) = self.records.column {
            return match field(column) {
                Some(Value::String(text)) => Ok(text.clone()),
                Some(Value::Array(messages)) => self.conversation(column, messages),
                Some(_) => Err(format!("`{column}` is neither a text nor a list of messages")),
                None if record.get(column).is_some() => Ok(String::new()),
                None => Err(format!("it has no field `{column}`, only {}", fields(record))),
            };
        }
        match (field("text"), field("messages")) {
            (Some(Value::String(text)), None) => Ok(text.clone()),
            (None, Some(Value::Array(messages))) => self.conversation("messages", messages),
            (Some(_), None) => Err("`text` is not a string".into()),
            (None, Some(_)) => Err("`messages` is not a list".into()),
            (Some(_), Some(_)) => Err("it has both `text` and `messages`".into()),
            (None, None) if record.get("text").or(record.get("messages")).is_some() => Ok(String::new()),
            (None, None) => Err(format!("it has neither `text` nor `messages`, only {}", fields(record))),
        }
    }

    fn conversation(&mut self, column: &str, messages: &[Value]) -> Result<String, String> {
        let messages = messages.iter().map(message).collect::<Option<Vec<_>>>();
        let messages = messages.filter(|messages| !messages.is_empty());
        (self.render)(&messages.ok_or_else(|| format!("`{column}` is not a list of `role` and `content`"))?)
    }

    fn bad(&self, unit: &'static str, number: usize, reason: String) -> Error {
        Error::BadRecord { path: self.path.into(), unit, number, reason }
    }

    fn read_error(&self, source: std::io::Error) -> Error {
        Error::Read { path: self.path.into(), source }
    }

    /// `good` is the valid text before the invalid byte, from the start of the line or of the file.
    fn not_utf8(&self, line: usize, good: &[u8]) -> Error {
        let line_start = good.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
        Error::NotUtf8 { path: self.path.into(), line, column: good.len() - line_start + 1 }
    }
}

fn message(value: &Value) -> Option<ChatMessage> {
    let field = |name: &str| value.get(name)?.as_str().map(str::to_owned);
    Some(ChatMessage { role: field("role")?, content: field("content")? })
}

/// The names of a record's fields, for an error message.
fn fields(record: &Value) -> String {
    let names: Vec<_> = record.as_object().into_iter().flat_map(|fields| fields.keys()).map(String::as_str).collect();
    if names.is_empty() { "no fields".into() } else { format!("`{}`", names.join("`, `")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written by gzip 1.12: two records with the fields `a` and `b`.
    const GZIP_ONE: &[u8] =
        b"\x1f\x8b\x08\0\0\0\0\0\x02\x03\xabVJT\xb2RP\xca\xcfKU\xd2QPJ\x02\xb2\xa3\xab\x95\x8a\xf2sRA\xa2\xa5\
        \xc5\xa9E \xe1\xe4\xfc\xbc\x92\xd4\xbc\x12\x90PF\xa6Rml-W5D\x1b\x91z\xf2\xc1z\0C\xabF\x0bk\0\0\0";
    const GZIP_TWO: &[u8] =
        b"\x1f\x8b\x08\0\0\0\0\0\x02\x03\xabVJT\xb2RP*\xc9(JMU\xd2QPJ\x02\xf12J\x95j\x01\x7f\xc2Z\xc2\x19\
        \0\0\0";

    /// Reads a file of this name and content: the texts, or the error's message and hint.
    fn read(name: &str, content: impl AsRef<[u8]>) -> Result<Vec<String>, (String, String)> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        let render = |messages: &[ChatMessage]| match messages[0].role.as_str() {
            "system" => Err("no system message here"),
            _ => Ok(messages.iter().map(|m| format!("[{}]{}", m.role, m.content)).collect()),
        };
        read_documents(&path, Records::default(), render).map(|documents| documents.texts).map_err(|error| {
            let message = error.to_string().replace(&path.display().to_string(), "FILE");
            (message, error.hint().unwrap_or_default())
        })
    }

    #[test]
    fn plain_text_is_one_document() {
        assert_eq!(read("a.txt", "one\n\ntwo {\"text\"}\n"), Ok(vec!["one\n\ntwo {\"text\"}\n".into()]));
        assert_eq!(read("a", "\u{feff}one"), Ok(vec!["one".into()]));
    }

    #[test]
    fn json_lines_have_texts_or_conversations() {
        let lines = concat!(
            "{\"text\": \"one\\ntwo\"}\n\n",
            "{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}, {\"role\": \"assistant\", \"content\": \"yes\"}]}\r\n",
            "{\"text\": \"\"}\n{\"id\": 7, \"text\": \"three\"}",
        );
        let expected = vec!["one\ntwo".into(), "[user]hi[assistant]yes".into(), "three".into()];
        assert_eq!(read("a.jsonl", lines), Ok(expected));
    }

    #[test]
    fn errors_name_file_and_position() {
        let good = "{\"text\": \"x\"}\n";
        let cases: &[(&str, Vec<u8>, &str)] = &[
            ("a.txt", b"".into(), "`FILE` contains no text"),
            ("a.txt", b" \n\t\n".into(), "`FILE` contains no text"),
            ("a.jsonl", b"\n\n".into(), "`FILE` contains no text"),
            ("a.jsonl", [good.as_bytes(), b"\xff"].concat(), "`FILE` is not UTF-8: line 2, byte 1"),
            (
                "a.jsonl",
                b"{\"id\": 1, \"body\": \"x\"}".into(),
                "line 1 of `FILE`: it has neither `text` nor `messages`, only `id`, `body`",
            ),
            ("a.txt.gz", b"ab".into(), "cannot read `FILE`: "),
            ("a.parquet", b"ab".into(), "cannot read `FILE` as parquet: "),
            ("a.txt", b"ab\nc\xe9d".into(), "`FILE` is not UTF-8: line 2, byte 2"),
            ("a.jsonl", [good, "{\"text\": "].concat().into(), "line 2 of `FILE`: EOF while parsing"),
            ("a.jsonl", [good, "\n[1]"].concat().into(), "line 3 of `FILE`: it has neither `text` nor `messages`"),
            ("a.jsonl", b"{\"text\": 1}".into(), "line 1 of `FILE`: `text` is not a string"),
            ("a.jsonl", b"{\"messages\": []}".into(), "line 1 of `FILE`: `messages` is not a list of `role`"),
            ("a.jsonl", b"{\"messages\": [{\"role\": \"user\"}]}".into(), "line 1 of `FILE`: `messages` is not a list"),
            ("a.jsonl", b"{\"messages\": 3}".into(), "line 1 of `FILE`: `messages` is not a list"),
            (
                "a.jsonl",
                b"{\"text\": \"x\", \"messages\": []}".into(),
                "line 1 of `FILE`: it has both `text` and `messages`",
            ),
            (
                "a.jsonl",
                b"{\"messages\": [{\"role\": \"system\", \"content\": \"x\"}]}".into(),
                "line 1 of `FILE`: no system message here",
            ),
        ];
        for (name, content, expected) in cases {
            let (message, hint) = read(name, content).unwrap_err();
            assert!(message.starts_with(expected), "{message}");
            assert!(!hint.is_empty(), "{message}");
        }
        let render = |_: &[ChatMessage]| Ok::<_, String>(String::new());
        let missing = read_documents(Path::new("not/there.txt"), Records::default(), render).unwrap_err();
        assert!(missing.to_string().starts_with("cannot read `not/there.txt`: "), "{missing}");
        assert!(missing.hint().unwrap().contains("check the path"));
    }

    #[test]
    fn a_compressed_file_and_a_named_column() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json.gz");
        // Two gzip members, like the output of `cat a.gz b.gz`.
        std::fs::write(&path, [GZIP_ONE, GZIP_TWO].concat()).unwrap();
        let read = |column, join| {
            let render = |messages: &[ChatMessage]| Ok::<_, String>(messages[0].content.clone());
            read_documents(&path, Records { column, join }, render)
        };
        let texts =
            |texts: &[&str]| Documents { texts: texts.iter().map(ToString::to_string).collect(), is_truncated: false };
        assert_eq!(read(Some("a"), None).unwrap(), texts(&["one", "three"]));
        assert_eq!(read(Some("a"), Some("-")).unwrap(), texts(&["one--three"]));
        assert_eq!(read(Some("b"), None).unwrap(), texts(&["hi", "ho", "hu"]));
        assert!(read(Some("c"), None).unwrap_err().to_string().contains("it has no field `c`, only `a`, `b`"));
    }
}

//! Text from files: plain text, or records with a text or a conversation each, in JSON lines or in parquet; either may be
//! compressed with gzip.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    path::Path,
};

use flate2::bufread::MultiGzDecoder;
use serde_json::Value;

use crate::{Error, Result, parquet};

/// Bytes of text that are read of one source at most. It makes some sixteen million tokens, eight times what is usually
/// asked for.
pub const TEXT_LIMIT: usize = 64 << 20;

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant` ...
    pub role: String,
    /// What was said.
    pub content: String,
}

/// What was read of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Documents {
    /// One string per text that stands for itself.
    pub texts: Vec<String>,
    /// Whether there is more, beyond [`TEXT_LIMIT`].
    pub is_cut: bool,
}

/// How the records of a file become texts.
#[derive(Debug, Clone, Copy, Default)]
pub struct Records<'a> {
    /// The field that holds the text, or the conversation. `None`: `text`, or else `messages`.
    pub column: Option<&'a str>,
    /// What stands between records that are one text.
    pub join: Option<&'a str>,
}

/// How a file is laid out.
#[derive(Clone, Copy)]
enum Layout {
    Plain,
    Lines,
    Parquet,
}

/// Reads a file. `.jsonl`, `.ndjson` and `.json` hold one record per line, `{"text": ".."}` or
/// `{"messages": [{"role": "..", "content": ".."}]}`; `.parquet` has such columns; anything else is one plain text. With
/// `.gz` behind it, the same compressed. Records without text are passed over, unless they are joined.
///
/// `render_chat` turns a conversation into text by the model's chat template.
pub fn read_documents<E: std::fmt::Display>(
    path: &Path,
    records: Records<'_>,
    mut render_chat: impl FnMut(&[ChatMessage]) -> Result<String, E>,
) -> Result<Documents> {
    let render = &mut |messages: &[ChatMessage]| render_chat(messages).map_err(|error| error.to_string());
    let (layout, is_compressed) = layout(path);
    let mut found = Found { path, records, render, texts: Vec::new(), bytes: 0 };
    let is_cut = match layout {
        Layout::Parquet => parquet::read(path, records.column, &mut |row, value| found.add("row", row, value))?,
        _ => {
            let file = File::open(path).map_err(|source| Error::Read { path: path.into(), source })?;
            let file = BufReader::with_capacity(1 << 16, file);
            let mut reader: Box<dyn BufRead> =
                if is_compressed { Box::new(BufReader::new(MultiGzDecoder::new(file))) } else { Box::new(file) };
            match layout {
                Layout::Lines => found.read_lines(reader.as_mut())?,
                _ => found.read_plain(reader.as_mut())?,
            }
        }
    };
    let mut texts = found.texts;
    match records.join {
        Some(join) => texts = vec![texts.join(join)],
        None => texts.retain(|text| !text.is_empty()),
    }
    if texts.iter().all(|text| text.trim().is_empty()) {
        return Err(Error::Empty { path: path.into() });
    }
    Ok(Documents { texts, is_cut })
}

/// By the end of its name: how a file is laid out, and whether it is compressed.
fn layout(path: &Path) -> (Layout, bool) {
    let name = path.file_name().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
    let (name, is_compressed) = match name.strip_suffix(".gz") {
        Some(rest) => (rest, true),
        None => (name.as_str(), false),
    };
    let layout = match name.rsplit_once('.') {
        Some((_, "jsonl" | "ndjson" | "json")) => Layout::Lines,
        // It has compression of its own.
        Some((_, "parquet")) if !is_compressed => Layout::Parquet,
        _ => Layout::Plain,
    };
    (layout, is_compressed)
}

/// Turns a conversation into text.
type Render<'a> = dyn FnMut(&[ChatMessage]) -> Result<String, String> + 'a;

/// The texts of a file so far.
struct Found<'a> {
    path: &'a Path,
    records: Records<'a>,
    render: &'a mut Render<'a>,
    texts: Vec<String>,
    bytes: usize,
}

impl Found<'_> {
    /// One text. Whether there was more.
    fn read_plain(&mut self, reader: &mut dyn BufRead) -> Result<bool> {
        let mut bytes = Vec::new();
        reader.take(TEXT_LIMIT as u64).read_to_end(&mut bytes).map_err(|source| self.read_error(source))?;
        let is_cut = bytes.len() == TEXT_LIMIT && !reader.fill_buf().map_err(|e| self.read_error(e))?.is_empty();
        if is_cut {
            // In the middle of a line, perhaps of a character.
            bytes.truncate(bytes.iter().rposition(|&b| b == b'\n').map_or(bytes.len(), |at| at + 1));
        }
        let text = String::from_utf8(bytes).map_err(|error| {
            let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = good.iter().filter(|&&b| b == b'\n').count() + 1;
            self.not_utf8(line, good)
        })?;
        // Some editors begin a file with a byte order mark, which is no part of its text.
        self.texts.push(text.strip_prefix('\u{feff}').unwrap_or(&text).to_owned());
        Ok(is_cut)
    }

    /// One record per line; empty lines are skipped. Whether there was more.
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
        unreachable!("a file ends")
    }

    /// Takes a record. Whether another is wanted.
    fn add(&mut self, unit: &'static str, number: usize, record: &Value) -> Result<bool> {
        let text = self.text(record).map_err(|reason| self.bad(unit, number, reason))?;
        self.bytes += text.len();
        self.texts.push(text);
        Ok(self.bytes < TEXT_LIMIT)
    }

    /// The text of a record; what is wrong with it.
    fn text(&mut self, record: &Value) -> Result<String, String> {
        let field = |name: &str| record.get(name).filter(|value| !value.is_null());
        if let Some(column) = self.records.column {
            return match field(column) {
                Some(Value::String(text)) => Ok(text.clone()),
                Some(Value::Array(messages)) => self.conversation(column, messages),
                Some(_) => Err(format!("`{column}` is neither a text nor a list of messages")),
                None if record.get(column).is_some() => Ok(String::new()),
                None => Err(format!("it has no `{column}`, but {}", fields(record))),
            };
        }
        match (field("text"), field("messages")) {
            (Some(Value::String(text)), None) => Ok(text.clone()),
            (None, Some(Value::Array(messages))) => self.conversation("messages", messages),
            (Some(_), None) => Err("`text` is not a string".into()),
            (None, Some(_)) => Err("`messages` is not a list".into()),
            (Some(_), Some(_)) => Err("it has `text` and `messages`".into()),
            (None, None) if record.get("text").or(record.get("messages")).is_some() => Ok(String::new()),
            (None, None) => Err(format!("it has neither `text` nor `messages`, but {}", fields(record))),
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

    /// `good` is what stands before the wrong byte: in its line, or in the file.
    fn not_utf8(&self, line: usize, good: &[u8]) -> Error {
        let line_start = good.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
        Error::NotUtf8 { path: self.path.into(), line, column: good.len() - line_start + 1 }
    }
}

fn message(value: &Value) -> Option<ChatMessage> {
    let field = |name: &str| value.get(name)?.as_str().map(str::to_owned);
    Some(ChatMessage { role: field("role")?, content: field("content")? })
}

/// The names of a record's fields, for a message.
fn fields(record: &Value) -> String {
    let names: Vec<_> = record.as_object().into_iter().flat_map(|fields| fields.keys()).map(String::as_str).collect();
    if names.is_empty() { "no field at all".into() } else { format!("`{}`", names.join("`, `")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of gzip 1.12: two records with the fields `a` and `b`, and one more.
    const GZIP_ONE: &[u8] =
        b"\x1f\x8b\x08\0\0\0\0\0\x02\x03\xabVJT\xb2RP\xca\xcfKU\xd2QPJ\x02\xb2\xa3\xab\x95\x8a\xf2sRA\xa2\xa5\
        \xc5\xa9E \xe1\xe4\xfc\xbc\x92\xd4\xbc\x12\x90PF\xa6Rml-W5D\x1b\x91z\xf2\xc1z\0C\xabF\x0bk\0\0\0";
    const GZIP_TWO: &[u8] =
        b"\x1f\x8b\x08\0\0\0\0\0\x02\x03\xabVJT\xb2RP*\xc9(JMU\xd2QPJ\x02\xf12J\x95j\x01\x7f\xc2Z\xc2\x19\
        \0\0\0";

    /// What a file of this name and content is read as: documents, or message and hint.
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
    fn jsonl_has_texts_and_conversations() {
        let lines = concat!(
            "{\"text\": \"one\\ntwo\"}\n\n",
            "{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}, {\"role\": \"assistant\", \"content\": \"yes\"}]}\r\n",
            "{\"text\": \"\"}\n{\"id\": 7, \"text\": \"three\"}",
        );
        let expected = vec!["one\ntwo".into(), "[user]hi[assistant]yes".into(), "three".into()];
        assert_eq!(read("a.jsonl", lines), Ok(expected));
    }

    #[test]
    fn errors_say_where() {
        let good = "{\"text\": \"x\"}\n";
        let cases: &[(&str, Vec<u8>, &str)] = &[
            ("a.txt", b"".into(), "`FILE` holds no text"),
            ("a.txt", b" \n\t\n".into(), "`FILE` holds no text"),
            ("a.jsonl", b"\n\n".into(), "`FILE` holds no text"),
            ("a.jsonl", [good.as_bytes(), b"\xff"].concat(), "`FILE` is not UTF-8: line 2, byte 1"),
            (
                "a.jsonl",
                b"{\"id\": 1, \"body\": \"x\"}".into(),
                "line 1 of `FILE`: it has neither `text` nor `messages`, but `id`, `body`",
            ),
            ("a.txt.gz", b"ab".into(), "cannot read `FILE`: "),
            ("a.parquet", b"ab".into(), "`FILE` is no parquet file that can be read: "),
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
                "line 1 of `FILE`: it has `text` and `messages`",
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
        // Two members, as `cat a.gz b.gz` makes them.
        std::fs::write(&path, [GZIP_ONE, GZIP_TWO].concat()).unwrap();
        let read = |column, join| {
            let render = |messages: &[ChatMessage]| Ok::<_, String>(messages[0].content.clone());
            read_documents(&path, Records { column, join }, render)
        };
        let texts =
            |texts: &[&str]| Documents { texts: texts.iter().map(ToString::to_string).collect(), is_cut: false };
        assert_eq!(read(Some("a"), None).unwrap(), texts(&["one", "three"]));
        assert_eq!(read(Some("a"), Some("-")).unwrap(), texts(&["one--three"]));
        assert_eq!(read(Some("b"), None).unwrap(), texts(&["hi", "ho", "hu"]));
        assert!(read(Some("c"), None).unwrap_err().to_string().contains("it has no `c`, but `a`, `b`"));
    }
}

//! [`Segment`]: a part of a prompt in which control tokens are parsed, or not. [`encode_segments`] encodes a prompt.
//!
//! A template gets only texts, and may trim, split or inspect a message. So each message is rendered unchanged, except for
//! text that would be parsed as a control token. A mark that occurs in no message replaces that text, and is replaced back in
//! the rendered prompt. All other text, in almost every conversation all of it, is encoded just like in the model's own
//! tokenizer.

use std::ops::Range;

use super::message::Message;
use crate::{Error, Result, Tokenizer};

/// A part of a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Segment {
    /// Text in which control tokens are parsed: text of the template, and messages without control tokens.
    Template(String),
    /// Plain text: control tokens that a user typed.
    Plain(String),
    /// Token ids, used unchanged.
    Tokens(Vec<u32>),
}

impl Segment {
    /// The text; empty for ids.
    pub fn text(&self) -> &str {
        match self {
            Segment::Template(text) | Segment::Plain(text) => text,
            Segment::Tokens(_) => "",
        }
    }
}

/// First and last character of a mark. A private-use character: neither white space nor a letter, so templates leave it alone.
const MARK: char = '\u{10FFFD}';

/// Calls `render` with the contents of the messages, control tokens replaced by marks, and replaces the marks back.
pub(super) fn render(
    messages: &[Message],
    tokenizer: &Tokenizer,
    render: &dyn Fn(Vec<String>) -> Result<String>,
) -> Result<Vec<Segment>> {
    // Use the first number whose mark occurs in no message.
    let taken = |mark: &str| messages.iter().any(|message| message.content.contains(mark));
    let mark =
        (0u64..).map(|n| format!("{MARK}{n}.")).find(|mark| !taken(mark)).expect("a message has finitely many marks");

    let mut replaced: Vec<&str> = Vec::new();
    let mut contents: Vec<String> = Vec::new();
    for Message { content, .. } in messages {
        let mut marked = String::new();
        let mut at = 0;
        for range in control_ranges(content, tokenizer)? {
            marked.push_str(&content[at..range.start]);
            marked.push_str(&format!("{mark}{}{MARK}", replaced.len()));
            replaced.push(&content[range.clone()]);
            at = range.end;
        }
        marked.push_str(&content[at..]);
        contents.push(marked);
    }
    split_at_marks(&render(contents)?, &mark, &replaced)
}

/// Splits `text` at its marks, and replaces each mark by the text it stands for.
fn split_at_marks(text: &str, mark: &str, replaced: &[&str]) -> Result<Vec<Segment>> {
    let mut segments = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find(mark) {
        let after = &rest[start + mark.len()..];
        let whole = after.find(MARK).and_then(|end| {
            let index: usize = after[..end].parse().ok()?;
            Some((end, *replaced.get(index)?))
        });
        let Some((end, original)) = whole else {
            let reason = "it cuts a control token in a message".into();
            return Err(Error::ChatTemplate { reason });
        };
        if start > 0 {
            segments.push(Segment::Template(rest[..start].to_string()));
        }
        segments.push(Segment::Plain(original.to_string()));
        rest = &after[end + MARK.len_utf8()..];
    }
    if !rest.is_empty() {
        segments.push(Segment::Template(rest.to_string()));
    }
    Ok(segments)
}

/// The byte ranges of control tokens in a message. Includes a suffix and a prefix of the message that are parts of a control
/// token, because text of the template could complete it. In order, without overlap, not empty.
fn control_ranges(content: &str, tokenizer: &Tokenizer) -> Result<Vec<Range<usize>>> {
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for (range, _) in tokenizer.control_tokens_in(content)? {
        ranges.push(without_white_space(content, &range));
    }
    let from = ranges.last().map_or(0, |last| last.end);
    let begun = tokenizer.control_tokens().iter().filter_map(|token| overlap(&content[from..], token)).max();
    if let Some(begun) = begun {
        ranges.push(content.len() - begun..content.len());
    }
    let until = ranges.first().map_or(content.len(), |first| first.start);
    let ended = tokenizer.control_tokens().iter().filter_map(|token| overlap(token, &content[..until])).max();
    if let Some(ended) = ended {
        ranges.insert(0, 0..ended);
    }
    Ok(ranges)
}

/// The length of the longest suffix of `left` that is a prefix of `right`.
fn overlap(left: &str, right: &str) -> Option<usize> {
    let most = left.len().min(right.len());
    (1..=most).rev().find(|n| right.is_char_boundary(*n) && left.ends_with(&right[..*n]))
}

/// The token ids of a prompt, given as segments.
pub fn encode_segments(tokenizer: &Tokenizer, segments: &[Segment]) -> Result<Vec<u32>> {
    let mut ids = Vec::new();
    for part in segments.split_inclusive(|segment| matches!(segment, Segment::Tokens(_))) {
        let (text, tokens) = match part {
            [text @ .., Segment::Tokens(tokens)] => (text, tokens.as_slice()),
            text => (text, [].as_slice()),
        };
        ids.extend(encode_text(tokenizer, text)?);
        ids.extend(tokens);
    }
    Ok(ids)
}

fn encode_text(tokenizer: &Tokenizer, segments: &[Segment]) -> Result<Vec<u32>> {
    let mut whole = String::new();
    let mut plain: Vec<Range<usize>> = Vec::new();
    for segment in segments {
        let start = whole.len();
        match segment {
            Segment::Template(text) => whole.push_str(text),
            Segment::Plain(text) => {
                whole.push_str(text);
                plain.push(start..whole.len());
            }
            Segment::Tokens(_) => unreachable!("encode_segments splits off ids"),
        }
    }
    let touches = |range: &Range<usize>| plain.iter().any(|p| p.start < range.end && range.start < p.end);
    let control = tokenizer.control_tokens_in(&whole)?;
    if !control.iter().any(|(range, _)| touches(&without_white_space(&whole, range))) {
        return tokenizer.encode(&whole);
    }

    // A user typed a control token. Encode the template's control tokens alone, and the text between two of them as one plain
    // text, because ordinary tokens can cross the borders of segments.
    let mut ids = Vec::new();
    let mut between = String::new();
    for segment in segments {
        let Segment::Template(text) = segment else {
            between.push_str(segment.text());
            continue;
        };
        let mut at = 0;
        for (range, id) in tokenizer.control_tokens_in(text)? {
            between.push_str(&text[at..range.start]);
            ids.extend(tokenizer.encode_plain(&std::mem::take(&mut between))?);
            ids.push(id);
            at = range.end;
        }
        between.push_str(&text[at..]);
    }
    ids.extend(tokenizer.encode_plain(&between)?);
    Ok(ids)
}

/// The range of a control token without the white space that it includes, because a template may trim that.
fn without_white_space(text: &str, range: &Range<usize>) -> Range<usize> {
    let token = &text[range.clone()];
    let start = range.start + (token.len() - token.trim_start().len());
    let end = start + token.trim().len();
    if start < end { start..end } else { range.clone() }
}

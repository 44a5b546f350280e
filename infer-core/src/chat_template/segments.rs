//! [`Segment`]: which parts of a prompt may hold control tokens, and [`encode_segments`].
//!
//! A template sees only texts, and what it does with a message cannot be followed: it may trim it, split it, or look
//! into it. So the message is rendered as it is, and only what would be read as a control token in it is put away
//! behind a mark that no message and no template holds; the mark is found again in the rendered text. Everything else,
//! and in almost every conversation that is everything, is encoded just as the model's own tokenizer would.

use std::ops::Range;

use super::Message;
use crate::{Error, Result, Tokenizer};

/// A part of a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Segment {
    /// Text in which control tokens are recognised: the template's own, and messages without any in them.
    Template(String),
    /// Text that is plain whatever it looks like: the control tokens that someone typed.
    Plain(String),
    /// Ids that stand for themselves.
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

/// What begins and ends a mark. Not white space, no letter, nothing that a template would touch; belongs to no script.
const MARK: char = '\u{10FFFD}';

/// Renders with `render`, which is given what to write as the messages' contents.
pub(super) fn render(
    messages: &[Message],
    tokenizer: &Tokenizer,
    render: &dyn Fn(Vec<String>) -> Result<String>,
) -> Result<Vec<Segment>> {
    // The first number that makes a mark which is in no message.
    let taken = |mark: &str| messages.iter().any(|message| message.content.contains(mark));
    let mark = (0u64..).map(|n| format!("{MARK}{n}.")).find(|mark| !taken(mark)).expect("numbers do not end");

    let mut put_away: Vec<&str> = Vec::new();
    let mut contents: Vec<String> = Vec::new();
    for Message { content, .. } in messages {
        let mut marked = String::new();
        let mut at = 0;
        for range in control_ranges(content, tokenizer)? {
            marked.push_str(&content[at..range.start]);
            marked.push_str(&format!("{mark}{}{MARK}", put_away.len()));
            put_away.push(&content[range.clone()]);
            at = range.end;
        }
        marked.push_str(&content[at..]);
        contents.push(marked);
    }
    split_at_marks(&render(contents)?, &mark, &put_away)
}

/// The text with its marks replaced by what they stand for.
fn split_at_marks(text: &str, mark: &str, put_away: &[&str]) -> Result<Vec<Segment>> {
    let mut segments = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find(mark) {
        let behind = &rest[start + mark.len()..];
        let whole = behind.find(MARK).and_then(|end| {
            let index: usize = behind[..end].parse().ok()?;
            Some((end, *put_away.get(index)?))
        });
        let Some((end, original)) = whole else {
            let reason = "it cuts through a control token that a message contains".into();
            return Err(Error::ChatTemplate { reason });
        };
        if start > 0 {
            segments.push(Segment::Template(rest[..start].to_string()));
        }
        segments.push(Segment::Plain(original.to_string()));
        rest = &behind[end + MARK.len_utf8()..];
    }
    if !rest.is_empty() {
        segments.push(Segment::Template(rest.to_string()));
    }
    Ok(segments)
}

/// Where a message holds control tokens, or the end or the beginning of one that could be completed by what the
/// template puts beside it. In order, not overlapping, never empty.
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

/// The length of the longest end of `left` that begins `right`, but is not the whole of either control token.
fn overlap(left: &str, right: &str) -> Option<usize> {
    let most = left.len().min(right.len());
    (1..=most).rev().find(|n| right.is_char_boundary(*n) && left.ends_with(&right[..*n]))
}

/// The token ids of a prompt.
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
            Segment::Tokens(_) => unreachable!("split off by encode_segments"),
        }
    }
    let touches = |range: &Range<usize>| plain.iter().any(|p| p.start < range.end && range.start < p.end);
    let control = tokenizer.control_tokens_in(&whole)?;
    if !control.iter().any(|(range, _)| touches(&without_white_space(&whole, range))) {
        return tokenizer.encode(&whole);
    }

    // Somebody typed a control token. Those of the template stand for themselves; what lies between them is plain, in
    // one piece, because ordinary tokens reach across the borders of segments.
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

/// A control token without the white space that it swallows, which a template may want to trim.
fn without_white_space(text: &str, range: &Range<usize>) -> Range<usize> {
    let token = &text[range.clone()];
    let start = range.start + (token.len() - token.trim_start().len());
    let end = start + token.trim().len();
    if start < end { start..end } else { range.clone() }
}

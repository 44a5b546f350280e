//! [`Source`]: a Rust or WGSL file split into code, literals and comments, so that a rule searches only one of them: a
//! word in a comment is not a call, and a word in a test is not in the library.

use std::ops::Range;

/// One file, taken apart. All texts keep the file's length and line ends, so that offsets are the same in each.
pub struct Source {
    /// Comments and the insides of literals are blanks.
    pub code: String,
    /// Only comments are blanks.
    pub without_comments: String,
    /// The insides of string literals, as written, with their offset.
    pub literals: Vec<(usize, String)>,
    /// Parts of the file that are compiled for tests only.
    tests: Vec<Range<usize>>,
}

/// The class of a byte.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Code,
    Literal,
    Comment,
}

impl Source {
    /// Takes a Rust file apart.
    pub fn rust(text: &str) -> Source {
        Source::new(text, true)
    }

    /// Takes a WGSL file apart: the same comments, no literals, no tests.
    pub fn wgsl(text: &str) -> Source {
        Source::new(text, false)
    }

    /// Whether the place is compiled for tests only.
    pub fn is_test(&self, offset: usize) -> bool {
        self.tests.iter().any(|range| range.contains(&offset))
    }

    fn new(text: &str, has_literals: bool) -> Source {
        let kinds = kinds(text.as_bytes(), has_literals);
        let keep = |wanted: &dyn Fn(Kind) -> bool| {
            let bytes =
                text.bytes().zip(&kinds).map(|(byte, kind)| if byte == b'\n' || wanted(*kind) { byte } else { b' ' });
            // A literal or comment is blanked whole, so no character is cut in two.
            String::from_utf8(bytes.collect()).expect("blanking keeps UTF-8 whole")
        };
        let code = keep(&|kind| kind == Kind::Code);
        let tests = test_ranges(&code);
        Source { without_comments: keep(&|kind| kind != Kind::Comment), literals: literals(text, &kinds), code, tests }
    }
}

/// Marks every byte. Quotes and comment signs of literals count as code, as do the `//` of no comment.
fn kinds(text: &[u8], has_literals: bool) -> Vec<Kind> {
    let mut kinds = vec![Kind::Code; text.len()];
    let mut at = 0;
    while at < text.len() {
        let rest = &text[at..];
        let end = if rest.starts_with(b"//") {
            let end = at + rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
            kinds[at..end].fill(Kind::Comment);
            end
        } else if rest.starts_with(b"/*") {
            let end = at + block_comment(rest);
            kinds[at..end].fill(Kind::Comment);
            end
        } else if !has_literals {
            at + 1
        } else if let Some((open, hashes)) = raw_string(text, at) {
            let close: Vec<u8> = std::iter::once(b'"').chain(std::iter::repeat_n(b'#', hashes)).collect();
            let inside = &rest[open..];
            let length = inside.windows(close.len()).position(|window| window == close).unwrap_or(inside.len());
            kinds[at + open..at + open + length].fill(Kind::Literal);
            (at + open + length + close.len()).min(text.len())
        } else if rest[0] == b'"' {
            let length = until_unescaped(&rest[1..], b'"');
            kinds[at + 1..at + 1 + length].fill(Kind::Literal);
            (at + length + 2).min(text.len())
        } else if rest[0] == b'\'' && is_char_literal(rest) {
            let length = until_unescaped(&rest[1..], b'\'');
            kinds[at + 1..at + 1 + length].fill(Kind::Literal);
            (at + length + 2).min(text.len())
        } else {
            at + 1
        };
        at = end;
    }
    kinds
}

/// Length of the (nested) block comment that `rest` starts with.
fn block_comment(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < rest.len() {
        match &rest[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    rest.len()
}

/// Length of `r##"` and its number of `#`, if a raw string starts here.
fn raw_string(text: &[u8], at: usize) -> Option<(usize, usize)> {
    if text[at] != b'r' || at > 0 && is_word(text[at - 1]) && !matches!(text[at - 1], b'b' | b'c') {
        return None;
    }
    let hashes = text[at + 1..].iter().take_while(|byte| **byte == b'#').count();
    (text.get(at + 1 + hashes) == Some(&b'"')).then_some((hashes + 2, hashes))
}

/// Whether `'` opens a character and not a lifetime.
fn is_char_literal(rest: &[u8]) -> bool {
    match rest {
        [_, b'\\', ..] => true,
        [_, first, ..] if first.is_ascii() => rest.get(2) == Some(&b'\''),
        [_, _, ..] => true, // no lifetime of ours starts with a letter beyond ASCII
        _ => false,
    }
}

/// Bytes before the next `quote` that no backslash precedes.
fn until_unescaped(rest: &[u8], quote: u8) -> usize {
    let mut at = 0;
    while at < rest.len() && rest[at] != quote {
        at += if rest[at] == b'\\' { 2 } else { 1 };
    }
    at.min(rest.len())
}

/// Whether a byte may stand in a name.
pub fn is_word(byte: u8) -> bool {
    byte == b'_' || byte.is_ascii_alphanumeric()
}

fn literals(text: &str, kinds: &[Kind]) -> Vec<(usize, String)> {
    let mut literals = Vec::new();
    let mut at = 0;
    for run in kinds.chunk_by(|a, b| a == b) {
        if run[0] == Kind::Literal {
            literals.push((at, text[at..at + run.len()].to_string()));
        }
        at += run.len();
    }
    literals
}

/// The items behind `#[cfg(test)]`, from the attribute to the closing brace or semicolon.
fn test_ranges(code: &str) -> Vec<Range<usize>> {
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for (start, _) in code.match_indices("#[cfg(test)]").chain(code.match_indices("#[cfg(all(test")) {
        let mut depth = 0_usize;
        let item = code[start..].char_indices().find(|(_, character)| {
            match character {
                '{' => depth += 1,
                '}' => depth = depth.saturating_sub(1),
                _ => {}
            }
            depth == 0 && matches!(character, '}' | ';')
        });
        ranges.push(start..item.map_or(code.len(), |(length, _)| start + length + 1));
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_literals_and_comments_are_told_apart() {
        let source = Source::rust(
            "let a = \"x // y \\\" z\"; // println!\nlet c = '\"'; /* a /* b */ c */ f::<'a>(r#\"q\"w\"#);",
        );
        let literals: Vec<&str> = source.literals.iter().map(|(_, text)| text.as_str()).collect();
        assert_eq!(literals, ["x // y \\\" z", "\"", "q\"w"]);
        assert!(!source.code.contains("println"));
        assert!(source.code.contains("f::<'a>(r#\"   \"#);"));
        assert!(source.without_comments.contains("x // y"));
    }

    #[test]
    fn offsets_are_kept_beyond_ascii() {
        let text = "// é\nlet s = \"é\"; let t = 'é'; f();";
        let source = Source::rust(text);
        assert_eq!(source.code.len(), text.len());
        assert_eq!(source.code.find("f()"), text.find("f()"));
    }

    #[test]
    fn tests_are_told_from_the_rest() {
        let text =
            "fn a() {}\n#[cfg(test)]\nmod tests { fn b() { if x {} } }\nfn c() {}\n#[cfg(test)]\nmod more;\nfn d() {}";
        let source = Source::rust(text);
        let is_test: Vec<bool> =
            ["a()", "b()", "c()", "more", "d()"].iter().map(|name| source.is_test(text.find(name).unwrap())).collect();
        assert_eq!(is_test, [false, true, false, true, false]);
    }
}

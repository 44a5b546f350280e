//! [`Tokens`]: a Rust file as the compiler's own lexer splits it, so that a rule on code does not search comments.

use anyhow::{Context, Result};
use proc_macro2::{Delimiter, LexError, Spacing, TokenStream, TokenTree};

/// The tokens of one file. Comments and documentation are left out.
#[derive(Default)]
pub struct Tokens(pub Vec<Token>);

/// One token. A delimiter is a token too.
#[derive(Debug, PartialEq)]
pub struct Token {
    /// As written. `::`, `->` and `=>` are one token.
    pub text: String,
    /// From 1.
    pub line: usize,
    pub kind: Kind,
    /// True if it is compiled for tests only.
    pub is_test: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// A name or a keyword.
    Name,
    /// A string, a character or a number.
    Literal,
    Sign,
}

impl Tokens {
    /// Splits a file.
    pub fn read(text: &str) -> Result<Tokens> {
        let stream: TokenStream = text
            .parse()
            .map_err(|error: LexError| anyhow::anyhow!("line {}: not Rust ({error})", error.span().start().line))?;
        let mut tokens = Tokens::default();
        tokens.extend(stream, false);
        Ok(tokens)
    }

    /// The places of a pattern of Rust, such as `std::env::var`.
    pub fn find<'a>(&'a self, pattern: &'a Tokens) -> impl Iterator<Item = &'a Token> {
        let length = pattern.0.len();
        let is_match = move |window: &&[Token]| window.iter().zip(&pattern.0).all(|(a, b)| a.text == b.text);
        self.0.windows(length.max(1)).filter(is_match).map(|window| &window[0])
    }

    /// The names that follow one of these keywords.
    pub fn names_after<'a>(&'a self, keywords: &'a [&'a str]) -> impl Iterator<Item = &'a Token> {
        let is_name = |pair: &&[Token]| {
            pair[0].kind == Kind::Name && keywords.contains(&pair[0].text.as_str()) && pair[1].kind == Kind::Name
        };
        self.0.windows(2).filter(is_name).map(|pair| &pair[1])
    }

    fn extend(&mut self, stream: TokenStream, is_test: bool) {
        let trees: Vec<TokenTree> = stream.into_iter().collect();
        // The end of the item that a `#[cfg(test)]` belongs to.
        let mut test_until = 0;
        let mut at = 0;
        while at < trees.len() {
            if let Some(attribute) = attribute(&trees[at..]) {
                if attribute.starts_with("doc=") {
                    at += if sign(&trees[at + 1]) == Some('!') { 3 } else { 2 };
                    continue;
                }
                if attribute.starts_with("cfg(test") || attribute.starts_with("cfg(all(test") {
                    test_until = test_until.max(item_end(&trees, at));
                }
            }
            at += self.push(&trees[at..], is_test || at < test_until);
        }
    }

    /// Appends the first tree, or a sign of two characters; returns the number of trees.
    fn push(&mut self, trees: &[TokenTree], is_test: bool) -> usize {
        let line = trees[0].span().start().line;
        let mut add = |text: String, kind| self.0.push(Token { text, line, kind, is_test });
        match &trees[0] {
            TokenTree::Ident(name) => add(name.to_string(), Kind::Name),
            TokenTree::Literal(literal) => add(literal.to_string(), Kind::Literal),
            TokenTree::Punct(first) => {
                let second = trees.get(1).and_then(sign).filter(|_| first.spacing() == Spacing::Joint);
                let text: String = [Some(first.as_char()), second].into_iter().flatten().collect();
                let is_pair = ["::", "->", "=>"].contains(&text.as_str());
                add(if is_pair { text } else { first.as_char().to_string() }, Kind::Sign);
                return if is_pair { 2 } else { 1 };
            }
            TokenTree::Group(group) => {
                let (open, close) = match group.delimiter() {
                    Delimiter::Parenthesis => ("(", ")"),
                    Delimiter::Brace => ("{", "}"),
                    Delimiter::Bracket => ("[", "]"),
                    Delimiter::None => ("", ""),
                };
                add(open.into(), Kind::Sign);
                self.extend(group.stream(), is_test);
                let line = group.span_close().start().line;
                self.0.push(Token { text: close.into(), line, kind: Kind::Sign, is_test });
            }
        }
        1
    }
}

/// The inside of the attribute that starts here, without spaces.
fn attribute(trees: &[TokenTree]) -> Option<String> {
    sign(trees.first()?).filter(|first| *first == '#')?;
    let inner = sign(trees.get(1)?) == Some('!');
    let TokenTree::Group(group) = trees.get(if inner { 2 } else { 1 })? else { return None };
    (group.delimiter() == Delimiter::Bracket).then(|| group.stream().to_string().replace(' ', ""))
}

fn sign(tree: &TokenTree) -> Option<char> {
    match tree {
        TokenTree::Punct(sign) => Some(sign.as_char()),
        _ => None,
    }
}

/// The index after the item that starts here: after its braces or its semicolon.
fn item_end(trees: &[TokenTree], start: usize) -> usize {
    let is_end = |tree: &TokenTree| {
        sign(tree) == Some(';') || matches!(tree, TokenTree::Group(group) if group.delimiter() == Delimiter::Brace)
    };
    trees[start..].iter().position(is_end).map_or(trees.len(), |length| start + length + 1)
}

/// The tokens of a pattern that is written in this program.
pub fn pattern(text: &str) -> Tokens {
    Tokens::read(text).with_context(|| format!("`{text}`")).expect("a pattern is Rust")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(text: &str, wanted: impl Fn(&Token) -> bool) -> Vec<String> {
        Tokens::read(text).unwrap().0.into_iter().filter(wanted).map(|token| token.text).collect()
    }

    #[test]
    fn comments_and_documentation_are_left_out() {
        let text = "//! a\n/// b\n/* c /* d */ */ fn e<'a>() { f::<'a>(r#\"// \"g\"\"#, '\"', \"h\"); } // i";
        assert_eq!(texts(text, |token| token.kind == Kind::Literal), ["r#\"// \"g\"\"#", "'\"'", "\"h\""]);
        assert_eq!(texts(text, |token| token.kind == Kind::Name), ["fn", "e", "a", "f", "a"]);
        assert_eq!(texts("a::b -> c => d: e", |token| token.kind == Kind::Sign), ["::", "->", "=>", ":"]);
    }

    #[test]
    fn tests_are_told_from_the_rest() {
        let text = "fn a() {}\n#[cfg(test)]\nmod b { fn c() { if x {} } }\nfn d() {}\n#[cfg(all(test, unix))]\nmod e;\nfn f() {}";
        let names = texts(text, |token| token.kind == Kind::Name && !token.is_test);
        assert_eq!(names, ["fn", "a", "fn", "d", "fn", "f"]);
        assert_eq!(Tokens::read(text).unwrap().0.last().unwrap().line, 7);
    }

    #[test]
    fn patterns_are_found_across_spaces_and_lines() {
        let tokens = Tokens::read("a(std::\n  env :: var(x)); environment::var(x); // env::var").unwrap();
        let lines: Vec<usize> = tokens.find(&pattern("env::var")).map(|token| token.line).collect();
        assert_eq!(lines, [2]);
    }
}

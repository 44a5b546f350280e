//! Headings, anchors and links of a Markdown document. Used by the link check and by the book.

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

/// The extensions that GitHub and mdBook read.
pub const EXTENSIONS: Options =
    Options::ENABLE_TABLES.union(Options::ENABLE_FOOTNOTES).union(Options::ENABLE_STRIKETHROUGH);

/// A link or an image.
pub struct Link {
    pub target: String,
    /// Byte offset in the document.
    pub offset: usize,
}

/// Every link and image of a document.
pub fn links(text: &str) -> Vec<Link> {
    let link = |(event, range): (Event<'_>, std::ops::Range<usize>)| match event {
        Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
            Some(Link { target: dest_url.to_string(), offset: range.start })
        }
        _ => None,
    };
    Parser::new_ext(text, EXTENSIONS).into_offset_iter().filter_map(link).collect()
}

/// The anchors of a document's headings, in order.
pub fn anchors(text: &str) -> Vec<String> {
    let mut anchors = Anchors::default();
    headings(text).into_iter().map(|title| anchors.next(&title)).collect()
}

/// The text of every heading, in order.
fn headings(text: &str) -> Vec<String> {
    let mut headings = Vec::new();
    let mut open = false;
    for event in Parser::new_ext(text, EXTENSIONS) {
        match event {
            Event::Start(Tag::Heading { .. }) => {
                open = true;
                headings.push(String::new());
            }
            Event::End(TagEnd::Heading(_)) => open = false,
            Event::Text(text) | Event::Code(text) if open => {
                headings.last_mut().expect("a heading is open").push_str(&text);
            }
            _ => {}
        }
    }
    headings
}

/// Anchors by GitHub's rule: lower case, no punctuation, hyphens for spaces, a number for a repeated title.
#[derive(Default)]
struct Anchors {
    used: Vec<String>,
}

impl Anchors {
    /// The anchor of the next heading.
    fn next(&mut self, title: &str) -> String {
        let kept = title.trim().chars().filter(|it| it.is_alphanumeric() || matches!(it, ' ' | '-' | '_'));
        let plain: String = kept.flat_map(char::to_lowercase).map(|it| if it == ' ' { '-' } else { it }).collect();
        let count = self.used.iter().filter(|used| **used == plain).count();
        self.used.push(plain.clone());
        if count == 0 { plain } else { format!("{plain}-{count}") }
    }
}

/// A link's target as a path from the root of the repository and an anchor; `None` for an address outside of it.
///
/// The path is empty where `from` is left through `..` beyond the root.
pub fn resolve(from: &str, target: &str) -> Option<(String, Option<String>)> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (path, anchor) = match target.split_once('#') {
        Some((path, anchor)) => (path, Some(anchor.to_string())),
        None => (target, None),
    };
    if path.is_empty() {
        return Some((from.to_string(), anchor));
    }
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in path.trim_end_matches('/').split('/') {
        match part {
            ".." if parts.pop().is_none() => return Some((String::new(), anchor)),
            "." | ".." => {}
            part => parts.push(part),
        }
    }
    Some((parts.join("/"), anchor))
}

/// A path of the repository as a link from `from`, a file of the same tree.
pub fn relative(from: &str, to: &str) -> String {
    let folder = from.rsplit_once('/').map_or("", |(folder, _)| folder);
    let (from, to): (Vec<&str>, Vec<&str>) =
        (folder.split('/').filter(|part| !part.is_empty()).collect(), to.split('/').collect());
    let shared = from.iter().zip(&to).take_while(|(a, b)| a == b).count().min(to.len() - 1);
    let up = std::iter::repeat_n("..", from.len() - shared);
    up.chain(to[shared..].iter().copied()).collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_and_anchors_are_found() {
        let text =
            "# A `b`, c\n[x](y.md#z) ![p](q.svg)\n```\n[not](a-link)\n```\n## A b c\n## A b c\n[r]: s.md\n[t][r]\n";
        let targets: Vec<String> = links(text).into_iter().map(|link| link.target).collect();
        assert_eq!(targets, ["y.md#z", "q.svg", "s.md"]);
        assert_eq!(anchors(text), ["a-b-c", "a-b-c-1", "a-b-c-2"]);
    }

    #[test]
    fn targets_are_resolved_from_the_root() {
        let check = |from, target, expected: Option<(&str, Option<&str>)>| {
            let expected = expected.map(|(path, anchor)| (path.to_string(), anchor.map(str::to_string)));
            assert_eq!(resolve(from, target), expected, "{from}, {target}");
        };
        check("docs/a/b.md", "../c.md#d", Some(("docs/c.md", Some("d"))));
        check("docs/a.md", "#d", Some(("docs/a.md", Some("d"))));
        check("a.md", "testdata/", Some(("testdata", None)));
        check("a.md", "../b.md", Some(("", None)));
        check("a.md", "https://example.org/b.md", None);
    }

    #[test]
    fn paths_become_relative() {
        assert_eq!(relative("a/b/c.html", "a/d.html"), "../d.html");
        assert_eq!(relative("c.html", "a/d.html"), "a/d.html");
        assert_eq!(relative("a/c.html", "a/d.html"), "d.html");
    }
}

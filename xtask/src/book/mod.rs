//! `cargo xtask docs`: the book in `docs/` as web pages, in `target/book/`.
//!
//! `docs/` has mdBook's layout: `SUMMARY.md` is the table of contents, the other files are pages. GitHub shows the same
//! files. This renderer needs nothing installed; it also renders the Markdown files outside of `docs/` that pages link
//! to, so that no link is dead.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result, ensure};
use pulldown_cmark::{CowStr, Event, Parser, Tag, TagEnd, html};

use crate::markdown::{self, EXTENSIONS};

const SUMMARY: &str = "docs/SUMMARY.md";
const TEMPLATE: &str = include_str!("page.html");

/// Builds the book and says where it is.
pub fn run(root: &Path) -> Result<()> {
    let output = root.join("target/book");
    if output.is_dir() {
        fs::remove_dir_all(&output).with_context(|| format!("cannot empty `{}`", output.display()))?;
    }
    let files = render(root)?;
    for (path, bytes) in &files {
        let path = output.join(path);
        let folder = path.parent().expect("a file has a folder");
        fs::create_dir_all(folder).with_context(|| format!("cannot create `{}`", folder.display()))?;
        fs::write(&path, bytes).with_context(|| format!("cannot write `{}`", path.display()))?;
    }
    println!("wrote {} files; open {}", files.len(), output.join("index.html").display());
    Ok(())
}

/// One line of the table of contents.
enum Entry {
    /// A heading between chapters.
    Part(String),
    /// A page, with its depth from 0 and its path from the root.
    Page { depth: usize, title: String, path: String },
}

/// Every file of the book, by its path below the output folder.
fn render(root: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let entries = contents(&read(root, SUMMARY)?);
    let chapters: Vec<(&str, &str)> = entries
        .iter()
        .filter_map(|entry| match entry {
            Entry::Page { title, path, .. } => Some((title.as_str(), path.as_str())),
            Entry::Part(_) => None,
        })
        .collect();
    ensure!(!chapters.is_empty(), "`{SUMMARY}` lists no page");
    let mut files = BTreeMap::new();
    // Pages, then files that they link to.
    let mut open: Vec<String> = chapters.iter().map(|(_, path)| path.to_string()).collect();
    while let Some(path) = open.pop() {
        let output = output_path(&path);
        if files.contains_key(&output) {
            continue;
        }
        if !path.ends_with(".md") {
            let bytes = fs::read(root.join(&path)).with_context(|| format!("cannot read `{path}`"))?;
            files.insert(output, bytes);
            continue;
        }
        let (body, linked) = body(root, &path, &read(root, &path)?);
        open.extend(linked);
        let at = chapters.iter().position(|(_, chapter)| *chapter == path);
        let title = at.map_or(path.as_str(), |at| chapters[at].0);
        let neighbor = |at: Option<usize>, label: &str| {
            let (title, path) = at.and_then(|at| chapters.get(at))?;
            let target = markdown::relative(&output, &output_path(path));
            Some(format!("<a class=\"{label}\" href=\"{target}\">{}</a>", escaped(title)))
        };
        let before = neighbor(at.and_then(|at| at.checked_sub(1)), "before").unwrap_or_default();
        let after = neighbor(at.map(|at| at + 1), "after").unwrap_or_default();
        let page = TEMPLATE
            .replace("{{title}}", &escaped(title))
            .replace("{{contents}}", &navigation(&entries, &path, &output))
            .replace("{{neighbors}}", &format!("{before}{after}"))
            .replace("{{body}}", &body);
        files.insert(output, page.into_bytes());
    }
    Ok(files)
}

fn read(root: &Path, path: &str) -> Result<String> {
    fs::read_to_string(root.join(path)).with_context(|| format!("cannot read `{path}`"))
}

/// Where a file of the repository goes: pages to the top, other files below `repository/`.
fn output_path(path: &str) -> String {
    let page = match path.strip_suffix(".md") {
        Some("docs/README") => "docs/index.html".to_string(),
        Some(stem) => format!("{stem}.html"),
        None => path.to_string(),
    };
    match page.strip_prefix("docs/") {
        Some(below) => below.to_string(),
        None => format!("repository/{page}"),
    }
}

/// The entries of `SUMMARY.md`.
fn contents(summary: &str) -> Vec<Entry> {
    let mut entries = Vec::new();
    let (mut depth, mut title, mut path) = (0usize, String::new(), None);
    for event in Parser::new_ext(summary, EXTENSIONS) {
        match event {
            Event::Start(Tag::List(_)) => depth += 1,
            Event::End(TagEnd::List(_)) => depth -= 1,
            Event::Start(Tag::Heading { .. }) => title.clear(),
            Event::End(TagEnd::Heading(level)) if level as usize > 1 || !entries.is_empty() => {
                entries.push(Entry::Part(std::mem::take(&mut title)));
            }
            Event::Start(Tag::Link { dest_url, .. }) => {
                path = markdown::resolve(SUMMARY, &dest_url).map(|(path, _)| path);
                title.clear();
            }
            Event::End(TagEnd::Link) => {
                let page =
                    path.take().map(|path| Entry::Page { depth: depth.saturating_sub(1), title: title.clone(), path });
                entries.extend(page);
            }
            Event::Text(text) | Event::Code(text) => title.push_str(&text),
            _ => {}
        }
    }
    entries
}

/// The table of contents beside a page.
fn navigation(entries: &[Entry], current: &str, output: &str) -> String {
    let line = |entry: &Entry| match entry {
        Entry::Part(title) => format!("<p>{}</p>\n", escaped(title)),
        Entry::Page { depth, title, path } => {
            let mark = if path == current { " aria-current=\"page\"" } else { "" };
            let target = markdown::relative(output, &output_path(path));
            format!("<a class=\"depth{depth}\" href=\"{target}\"{mark}>{}</a>\n", escaped(title))
        }
    };
    entries.iter().map(line).collect()
}

/// A document as HTML, and the files of the repository that it links to.
fn body(root: &Path, path: &str, text: &str) -> (String, Vec<String>) {
    let titles = markdown::anchors(text);
    let (mut heading, mut linked) = (titles.into_iter(), Vec::new());
    let output = output_path(path);
    let mut target = |url: CowStr<'_>| -> CowStr<'static> {
        let Some((to, anchor)) = markdown::resolve(path, &url) else { return url.into_string().into() };
        let anchor = anchor.map(|anchor| format!("#{anchor}")).unwrap_or_default();
        if to == path {
            return anchor.into();
        }
        let is_folder = root.join(&to).is_dir();
        // A folder has no page; the link then leads to the map of the repository.
        let to = if is_folder { "ARCHITECTURE.md".to_string() } else { to };
        let target = markdown::relative(&output, &output_path(&to));
        linked.push(to);
        format!("{target}{anchor}").into()
    };
    let mut events = Vec::new();
    for event in Parser::new_ext(text, EXTENSIONS) {
        events.push(match event {
            Event::Start(Tag::Heading { level, classes, attrs, .. }) => {
                Event::Start(Tag::Heading { level, id: heading.next().map(CowStr::from), classes, attrs })
            }
            Event::Start(Tag::Link { link_type, dest_url, title, id }) => {
                Event::Start(Tag::Link { link_type, dest_url: target(dest_url), title, id })
            }
            Event::Start(Tag::Image { link_type, dest_url, title, id }) => {
                Event::Start(Tag::Image { link_type, dest_url: target(dest_url), title, id })
            }
            other => other,
        });
    }
    let mut body = String::new();
    html::push_html(&mut body, events.into_iter());
    let body = body.replace("<table>", "<div class=\"table\"><table>").replace("</table>", "</table></div>");
    (body, linked)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn root() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
    }

    #[test]
    fn every_link_of_the_built_book_leads_to_a_file_of_it() {
        let files = render(&root()).unwrap();
        assert!(files.contains_key("index.html"));
        for (path, bytes) in files.iter().filter(|(path, _)| path.ends_with(".html")) {
            let text = std::str::from_utf8(bytes).unwrap();
            let targets = text.split("href=\"").skip(1).chain(text.split("src=\"").skip(1));
            for target in targets.map(|rest| rest.split('"').next().unwrap()) {
                let Some((to, anchor)) = markdown::resolve(path, target) else { continue };
                let Some(file) = files.get(&to) else { panic!("{path}: `{target}` is not in the book") };
                let is_there = anchor
                    .is_none_or(|anchor| std::str::from_utf8(file).unwrap().contains(&format!("id=\"{anchor}\"")));
                assert!(is_there, "{path}: `{target}` has no such heading");
            }
        }
    }

    #[test]
    fn contents_have_parts_and_depths() {
        let entries = contents("# Summary\n\n[In](README.md)\n\n# Use\n\n- [A `b`](a.md)\n  - [C](a/c.md)\n");
        let lines = entries.iter().map(|entry| match entry {
            Entry::Part(title) => format!("part {title}"),
            Entry::Page { depth, title, path } => format!("{depth} {title} {path}"),
        });
        let expected = ["0 In docs/README.md", "part Use", "0 A b docs/a.md", "1 C docs/a/c.md"];
        assert_eq!(lines.collect::<Vec<_>>(), expected);
    }
}

//! Rules on the documents: paths that they name exist, and the map of ARCHITECTURE.md is complete.

use super::{
    Finding,
    tree::{File, Tree},
};

const DOCUMENTS: &[&str] = &["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "testdata/README.md", "docs/"];

/// A path as a document writes it.
struct Mention {
    path: String,
    offset: usize,
    /// The crate under whose heading it stands.
    section: Option<String>,
}

/// Paths in documents that do not exist.
pub fn paths_exist(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    let is_checked = |file: &&File| {
        file.path.ends_with(".md")
            && DOCUMENTS.iter().any(|it| file.path == *it || it.ends_with('/') && file.path.starts_with(it))
            // The laboratory is a log: it names files as they were.
            && !file.path.starts_with("docs/laboratory/")
    };
    for document in tree.files.iter().filter(is_checked) {
        for mention in mentions(tree, document) {
            if homes(tree, &mention).next().is_none() {
                findings.push(Finding::at(
                    document,
                    document.line(mention.offset),
                    format!("`{}` is not there", mention.path),
                ));
            }
        }
    }
    findings
}

/// Source files without a line in the map.
pub fn map_is_complete(tree: &Tree) -> Vec<Finding> {
    let Some(map) = tree.file("ARCHITECTURE.md") else { return Vec::new() };
    let mentions: Vec<Mention> = mentions(tree, map).into_iter().filter(|mention| mention.section.is_some()).collect();
    let mapped: Vec<String> = mentions.iter().flat_map(|mention| homes(tree, mention)).collect();
    let is_mapped =
        |path: &str| mapped.iter().any(|home| home == path || home.ends_with('/') && path.starts_with(home));
    let unmapped = tree.sources().filter(|file| file.path.contains("/src/") && !is_mapped(&file.path));
    unmapped.map(|file| Finding::of(&file.path, "no line in the map of ARCHITECTURE.md")).collect()
}

/// The files that a mention can refer to, or the folder with `/` at its end.
fn homes<'a>(tree: &'a Tree, mention: &Mention) -> impl Iterator<Item = String> + 'a {
    let written = mention.path.trim_end_matches('/').to_string();
    let from_root = is_from_root(tree, &written);
    let inside = mention.section.as_ref().map(|section| format!("{section}/"));
    tree.files.iter().filter_map(move |file| {
        let below = file.path.strip_prefix(inside.as_deref().unwrap_or_default());
        let start = match below {
            Some(below) if below.starts_with(&written) => file.path.len() - below.len(),
            _ if from_root && file.path.starts_with(&written) => 0,
            // A bare name may be in any folder, in prose only.
            _ if inside.is_none() => file.path.find(&format!("/{written}"))? + 1,
            _ => return None,
        };
        let end = start + written.len();
        match file.path.as_bytes().get(end) {
            None => Some(file.path.clone()),
            Some(b'/') => Some(file.path[..=end].to_string()),
            Some(_) => None,
        }
    })
}

fn is_from_root(tree: &Tree, path: &str) -> bool {
    path.split_once('/').is_some_and(|(top, _)| tree.files.iter().any(|file| file.package() == top && file.path != top))
}

/// Every path in code spans, and in the blocks under a crate's heading.
fn mentions(tree: &Tree, document: &File) -> Vec<Mention> {
    let mut mentions = Vec::new();
    let (mut in_block, mut section, mut offset) = (false, None, 0);
    for line in document.text.split_inclusive('\n') {
        if line.starts_with("```") {
            in_block = !in_block;
        } else if !in_block && line.starts_with('#') {
            let title =
                line.trim_start_matches('#').trim().split([':', ' ']).next().unwrap_or_default().trim_matches('`');
            let is_crate = tree.files.iter().any(|file| file.package() == title && file.path != title);
            section = is_crate.then(|| title.to_string());
        } else {
            let spans: Vec<&str> = match in_block {
                // A line of a map: the path, then its description.
                true if section.is_some() => line.split_whitespace().take(1).collect(),
                true => Vec::new(),
                false => line.split('`').skip(1).step_by(2).collect(),
            };
            for path in spans.into_iter().filter(|span| is_path(tree, span)) {
                let at = offset + line.find(path).expect("a span of this line");
                let section = section.clone().filter(|_| in_block);
                mentions.push(Mention { path: path.to_string(), offset: at, section });
            }
        }
        offset += line.len();
    }
    mentions
}

/// True if a span is a path of the repository: below one of its folders, or with one of our file extensions.
fn is_path(tree: &Tree, span: &str) -> bool {
    let plain = span.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-/".contains(&byte));
    let ours =
        [".rs", ".wgsl", ".md", ".toml"].iter().any(|ending| span.ends_with(ending) && span.len() > ending.len());
    plain && !span.contains("NAME") && (ours || span.starts_with("src/") || is_from_root(tree, span))
}

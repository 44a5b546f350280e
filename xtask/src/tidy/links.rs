//! Rules on links: their targets exist, and every page of the book is in its table of contents.

use std::collections::BTreeSet;

use super::{
    Finding,
    tree::{File, Tree},
};
use crate::markdown;

/// Links and images whose file or heading does not exist. Addresses on the network are not looked up.
pub fn links_lead_somewhere(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for document in documents(tree) {
        for link in markdown::links(&document.text) {
            let Some((path, anchor)) = markdown::resolve(&document.path, &link.target) else { continue };
            let file = tree.file(&path);
            let is_folder = || tree.files.iter().any(|file| file.path.starts_with(&format!("{path}/")));
            if file.is_none() && !is_folder() {
                findings.push(Finding::at(
                    document,
                    document.line(link.offset),
                    format!("`{}` does not exist", link.target),
                ));
            } else if let (Some(file), Some(anchor)) = (file, anchor)
                && !markdown::anchors(&file.text).contains(&anchor)
            {
                findings.push(Finding::at(
                    document,
                    document.line(link.offset),
                    format!("`{}` has no heading `#{anchor}`", file.path),
                ));
            }
        }
    }
    findings
}

/// Pages of `docs/` that its table of contents does not list.
pub fn book_is_complete(tree: &Tree) -> Vec<Finding> {
    let Some(summary) = tree.file("docs/SUMMARY.md") else { return Vec::new() };
    let links = markdown::links(&summary.text);
    let listed: BTreeSet<String> =
        links.iter().filter_map(|link| Some(markdown::resolve(&summary.path, &link.target)?.0)).collect();
    let pages = documents(tree).filter(|file| file.path.starts_with("docs/") && file.path != summary.path);
    pages
        .filter(|page| !listed.contains(&page.path))
        .map(|page| Finding::of(&page.path, "docs/SUMMARY.md does not list this page"))
        .collect()
}

/// A README that is too long for a visitor.
pub fn readme_is_short(tree: &Tree) -> Vec<Finding> {
    const LIMIT: usize = 8 << 10;
    let readme = tree.file("README.md").filter(|file| file.text.len() > LIMIT);
    let finding = |file: &File| Finding::of(&file.path, format!("{} bytes, more than {LIMIT}", file.text.len()));
    readme.map(finding).into_iter().collect()
}

fn documents(tree: &Tree) -> impl Iterator<Item = &File> {
    tree.files.iter().filter(|file| file.path.ends_with(".md"))
}

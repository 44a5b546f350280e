//! The rule against import cycles.
//!
//! Take the modules that one module declares. Their files import each other in one direction only. A file and the files
//! below it may use each other: `mod.rs` and its folder are one unit. An import counts for the file that defines the item,
//! also if the path goes through a re-export. Not counted: tests, and imports of `error.rs` (an error names its causes).

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Finding,
    tokens::{Kind, Token},
    tree::{File, Part, Tree},
};

/// A module's names from the root of its target.
type Path = Vec<String>;

/// Sibling modules that import each other in a circle.
pub fn check(tree: &Tree) -> Vec<Finding> {
    let mut targets: BTreeMap<(&str, bool), Target<'_>> = BTreeMap::new();
    for (file, _) in tree.rust().filter(|(file, _)| matches!(file.part, Part::Library | Part::Binary)) {
        let target = targets.entry((file.package(), file.part == Part::Library)).or_default();
        target.modules.insert(file.module.clone(), file);
    }
    targets.into_values().flat_map(Target::cycles).collect()
}

/// The modules of a library or a binary.
#[derive(Default)]
struct Target<'a> {
    modules: BTreeMap<Path, &'a File>,
    /// By module and local name: the imported path.
    imported: BTreeMap<(Path, String), Path>,
}

/// A path in a file: `crate::a::B`.
struct Mention {
    path: Path,
    line: usize,
}

/// Two files, and a line of the first that imports an item of the second.
#[derive(Clone, Copy)]
struct Edge<'a> {
    from: &'a File,
    to: &'a File,
    line: usize,
}

impl<'a> Target<'a> {
    fn cycles(mut self) -> Vec<Finding> {
        let mut mentions = Vec::new();
        for (module, file) in &self.modules {
            let (imports, paths) = paths(&file.tokens.0);
            for (name, mention) in imports {
                let path = absolute(&self.modules, module, &mention.path);
                if let Some(path) = path {
                    self.imported.insert((module.clone(), name), path.clone());
                    mentions.push((*file, path, mention.line));
                }
            }
            for mention in paths {
                mentions.extend(absolute(&self.modules, module, &mention.path).map(|path| (*file, path, mention.line)));
            }
        }
        // For each parent module, the imports between its children.
        let mut levels: BTreeMap<&[String], BTreeMap<(&String, &String), Edge<'a>>> = BTreeMap::new();
        for (from, path, line) in &mentions {
            let Some(to) = self.home(path, 0) else { continue };
            let (Some((a, parent)), Some((b, other))) = (from.module.split_last(), to.module.split_last()) else {
                continue;
            };
            if parent == other && a != b && from.name() != "error.rs" {
                levels.entry(parent).or_default().entry((a, b)).or_insert(Edge { from, to, line: *line });
            }
        }
        levels.values().flat_map(circles).collect()
    }

    /// The file that defines the item of a path.
    fn home(&self, path: &[String], depth: usize) -> Option<&'a File> {
        let length = (0..=path.len()).rev().find(|length| self.modules.contains_key(&path[..*length]))?;
        let (module, rest) = path.split_at(length);
        let imported = rest.first().and_then(|name| self.imported.get(&(module.to_vec(), name.clone())));
        match imported {
            // The limit ends a cycle of aliases.
            Some(imported) if depth < 8 => self.home(&[imported, &rest[1..]].concat(), depth + 1),
            // `use a::b;` of a module: the paths that start with `b` count instead.
            _ if rest.is_empty() && depth == 0 => None,
            _ => self.modules.get(module).copied(),
        }
    }
}

/// A path of a module from the root; `None` for a path into another crate.
fn absolute(modules: &BTreeMap<Path, &File>, module: &[String], path: &[String]) -> Option<Path> {
    let parent = || module.split_last().map(|(_, parent)| parent.to_vec());
    let (mut base, mut rest) = match path.first()?.as_str() {
        "crate" => (Vec::new(), &path[1..]),
        "self" => (module.to_vec(), &path[1..]),
        "super" => (parent()?, &path[1..]),
        first => {
            let child = [module, &[first.to_string()]].concat();
            (modules.contains_key(&child).then(|| module.to_vec())?, path)
        }
    };
    while rest.first().is_some_and(|segment| segment == "super") {
        base.pop()?;
        rest = &rest[1..];
    }
    Some([base.as_slice(), rest].concat())
}

/// The imports of a file, by the name that each gives, and the other paths outside tests.
fn paths(tokens: &[Token]) -> (Vec<(String, Mention)>, Vec<Mention>) {
    let (mut imports, mut others) = (Vec::new(), Vec::new());
    let mut at = 0;
    while at < tokens.len() {
        let token = &tokens[at];
        // `use<'a>` lists what an opaque type captures.
        let is_import = token.text == "use" && tokens.get(at + 1).is_some_and(|next| next.text != "<");
        if is_import {
            let end = at + tokens[at..].iter().position(|token| token.text == ";").unwrap_or(tokens.len() - at);
            if !token.is_test {
                leaves(&tokens[at + 1..end], &[], &mut imports);
            }
            at = end;
        } else if token.kind == Kind::Name {
            let length = path_length(&tokens[at..]);
            let is_start = at == 0 || tokens[at - 1].text != "::";
            if length > 1 && is_start && !token.is_test {
                let names = tokens[at..at + length].iter().filter(|token| token.kind == Kind::Name);
                others.push(Mention { path: names.map(|name| name.text.clone()).collect(), line: token.line });
            }
            at += length;
        } else {
            at += 1;
        }
    }
    // `b::C` after `use a::b;` means `a::b::C`.
    let by_name: BTreeMap<&String, &Path> = imports.iter().map(|(name, it)| (name, &it.path)).collect();
    for mention in &mut others {
        if let Some(import) = by_name.get(&mention.path[0]) {
            mention.path = [import, &mention.path[1..]].concat();
        }
    }
    (imports, others)
}

/// Number of tokens of the path `a::b::c` that starts here.
fn path_length(tokens: &[Token]) -> usize {
    let mut length = 1;
    while tokens.get(length).is_some_and(|token| token.text == "::")
        && tokens.get(length + 1).is_some_and(|token| token.kind == Kind::Name)
    {
        length += 2;
    }
    length
}

/// Every path of the tree in a `use`, with the name it gives.
fn leaves(tokens: &[Token], prefix: &[String], found: &mut Vec<(String, Mention)>) {
    let mut path = prefix.to_vec();
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        match token.text.as_str() {
            "{" => {
                for branch in branches(&tokens[at + 1..tokens.len() - 1]) {
                    leaves(branch, &path, found);
                }
                return;
            }
            "::" => {}
            "as" => break,
            "self" if !path.is_empty() => {}
            _ => path.push(token.text.clone()),
        }
        at += 1;
    }
    let Some(last) = tokens.last() else { return };
    let name = if last.text == "self" { path.last().cloned().unwrap_or_default() } else { last.text.clone() };
    found.push((name, Mention { path, line: last.line }));
}

/// The parts between the commas of a group.
fn branches(tokens: &[Token]) -> Vec<&[Token]> {
    let mut depth = 0_usize;
    let is_comma = |token: &Token| {
        match token.text.as_str() {
            "{" => depth += 1,
            "}" => depth -= 1,
            _ => {}
        }
        depth == 0 && token.text == ","
    };
    tokens.split(is_comma).filter(|branch| !branch.is_empty()).collect()
}

/// Shortest cycles, so that each module in a cycle appears at least once.
fn circles(edges: &BTreeMap<(&String, &String), Edge<'_>>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut seen: BTreeSet<&String> = BTreeSet::new();
    for start in edges.keys().map(|(from, _)| *from) {
        if seen.contains(start) {
            continue;
        }
        let Some(circle) = shortest(edges, start) else { continue };
        seen.extend(&circle);
        let next = circle.iter().cycle().skip(1);
        let steps: Vec<&Edge<'_>> = circle.iter().zip(next).map(|(from, to)| &edges[&(*from, *to)]).collect();
        let step = |edge: &&Edge<'_>| format!("{}:{} imports {}", edge.from.path, edge.line, edge.to.path);
        let shown = steps.iter().map(step).collect::<Vec<_>>().join(", ");
        findings.push(Finding::at(steps[0].from, steps[0].line, format!("import cycle: {shown}")));
    }
    findings
}

/// The modules of a shortest cycle through `start`, by breadth-first search.
fn shortest<'a>(edges: &BTreeMap<(&'a String, &'a String), Edge<'_>>, start: &'a String) -> Option<Vec<&'a String>> {
    let mut open = vec![vec![start]];
    let mut seen = BTreeSet::new();
    while !open.is_empty() {
        let mut longer = Vec::new();
        for way in &open {
            let last = way[way.len() - 1];
            for (_, next) in edges.keys().filter(|(from, _)| *from == last) {
                if *next == start {
                    return Some(way.clone());
                }
                if seen.insert(*next) {
                    longer.push([way.as_slice(), &[*next]].concat());
                }
            }
        }
        open = longer;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The cycles of a library with these files below `a/src/`.
    fn cycles(files: &[(&str, &str)]) -> Vec<String> {
        let files = files.iter().map(|(path, text)| (format!("a/src/{path}"), text.to_string()));
        let tree = Tree::new(files.collect()).unwrap();
        check(&tree).into_iter().map(|finding| finding.what).collect()
    }

    #[test]
    fn siblings_may_not_import_each_other() {
        let root = ("lib.rs", "mod b; mod c; pub use b::B; use c::C;");
        let b = ("b.rs", "use crate::c::C; struct B;");
        let cycle = "import cycle: a/src/b.rs:1 imports a/src/c.rs, a/src/c.rs:2 imports a/src/b.rs";
        assert!(cycles(&[root, b, ("c.rs", "struct C;")]).is_empty());
        for c in [
            "\nuse super::b::B;",
            "\nuse super::{b::{self as d}}; fn f() { d::B }",
            "\nfn f() -> crate::b::B {}",
            "\nuse crate::B;",
            "\nfn f() { vec![super::B] }",
        ] {
            assert_eq!(cycles(&[root, b, ("c.rs", c)]), [cycle], "{c}");
        }
        for c in ["// crate::b::B", "#[cfg(test)]\nmod tests { use crate::b::B; }", "use other::b::B;", "use super::b;"]
        {
            assert!(cycles(&[root, b, ("c.rs", c)]).is_empty(), "{c}");
        }
    }

    #[test]
    fn a_module_and_what_is_below_it_are_one_unit() {
        let root = ("lib.rs", "mod b; mod c;");
        let parent = ("b/mod.rs", "mod d; mod e; pub struct B; pub use d::D; fn f() { e::E }");
        let below = [("b/d.rs", "use super::B;"), ("b/e.rs", "use super::D; use super::B;")];
        assert!(cycles(&[root, parent, below[0], below[1], ("c.rs", "use crate::b::D;")]).is_empty());
        // Through the parent's re-export.
        assert_eq!(cycles(&[root, parent, ("b/d.rs", "use super::e::E;"), below[1]]).len(), 1);
    }
}

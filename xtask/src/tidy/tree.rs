//! [`Tree`]: the files of the repository, each with its part: library, binary or test.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::Command,
};

use anyhow::{Context, Result, ensure};

use super::tokens::{Token, Tokens};

/// Crates whose library only programs use.
const SHARED_BY_BINARIES: &[&str] = &["benches", "command-line"];

/// Every file of the repository that git does not ignore.
pub struct Tree {
    /// In the order of their paths.
    pub files: Vec<File>,
}

/// One file.
pub struct File {
    /// From the root, with `/` between folders.
    pub path: String,
    /// Its text; empty for a file that is not text.
    pub text: String,
    /// Tokens of a Rust file.
    pub tokens: Tokens,
    /// The target that compiles it.
    pub part: Part,
    /// Names of its modules, from the root of its target.
    pub module: Vec<String>,
}

/// The target that compiles a Rust file.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Part {
    /// Reached from `lib.rs`.
    Library,
    /// Reached from `main.rs` or `src/bin/` and not from `lib.rs`; or from a `lib.rs` that only binaries use.
    Binary,
    /// An integration test, a benchmark, an example, a build script, or a module behind `#[cfg(test)]`.
    Test,
    /// A file under `src/` that no `mod` reaches.
    Orphan,
    /// No Rust file.
    NotRust,
}

impl Tree {
    /// Reads the repository at `root`.
    pub fn read(root: &Path) -> Result<Tree> {
        let arguments = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
        let output = Command::new("git").args(arguments).current_dir(root).output().context("cannot run `git`")?;
        ensure!(output.status.success(), "`git ls-files` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        let paths = String::from_utf8(output.stdout).context("a path is not UTF-8")?;
        let paths: BTreeSet<&str> = paths.split('\0').filter(|path| root.join(path).is_file()).collect();
        let read = |path: &str| std::fs::read(root.join(path)).with_context(|| format!("cannot read `{path}`"));
        let files =
            paths.into_iter().map(|path| Ok((path.to_string(), String::from_utf8(read(path)?).unwrap_or_default())));
        Tree::new(files.collect::<Result<_>>()?)
    }

    /// A tree of the given paths and texts.
    pub fn new(files: Vec<(String, String)>) -> Result<Tree> {
        let file = |(path, text): (String, String)| {
            let is_rust = path.ends_with(".rs");
            let part = match path.split('/').nth(1) {
                _ if !is_rust => Part::NotRust,
                Some("src") => Part::Orphan,
                _ => Part::Test,
            };
            let tokens = if is_rust { Tokens::read(&text).with_context(|| path.clone())? } else { Tokens::default() };
            Ok(File { path, text, tokens, part, module: Vec::new() })
        };
        let mut tree = Tree { files: files.into_iter().map(file).collect::<Result<_>>()? };
        tree.find_parts();
        Ok(tree)
    }

    /// The file at `path`.
    pub fn file(&self, path: &str) -> Option<&File> {
        self.files.iter().find(|file| file.path == path)
    }

    /// Rust files with their tokens.
    pub fn rust(&self) -> impl Iterator<Item = (&File, &Tokens)> {
        self.files.iter().filter(|file| file.part != Part::NotRust).map(|file| (file, &file.tokens))
    }

    /// Rust and WGSL files.
    pub fn sources(&self) -> impl Iterator<Item = &File> {
        self.files.iter().filter(|file| file.part != Part::NotRust || file.path.ends_with(".wgsl"))
    }

    /// Follows `mod NAME;` from the roots of every crate.
    fn find_parts(&mut self) {
        let index: BTreeMap<String, usize> =
            self.files.iter().enumerate().map(|(index, file)| (file.path.clone(), index)).collect();
        for (root, part) in [("lib.rs", Part::Library), ("main.rs", Part::Binary), ("bin/", Part::Binary)] {
            let is_root = |path: &str| {
                path.split_once('/').and_then(|(_, rest)| rest.strip_prefix("src/")).is_some_and(|rest| {
                    rest == root || root.ends_with('/') && rest.starts_with(root) && rest.ends_with(".rs")
                })
            };
            let roots = index.iter().filter(|(path, _)| is_root(path));
            let mut open: Vec<(usize, Part, Vec<String>)> = roots
                .map(|(path, index)| match path.split('/').next() {
                    Some(package) if SHARED_BY_BINARIES.contains(&package) => (*index, Part::Binary, Vec::new()),
                    _ => (*index, part, Vec::new()),
                })
                .collect();
            while let Some((at, part, module)) = open.pop() {
                if !matches!(self.files[at].part, Part::Orphan) {
                    continue;
                }
                let file = &mut self.files[at];
                (file.part, file.module) = (part, module.clone());
                for token in modules(&file.tokens) {
                    let part = if token.is_test { Part::Test } else { part };
                    let (folder, name) = (module_folder(&file.path), &token.text);
                    let homes = [format!("{folder}/{name}.rs"), format!("{folder}/{name}/mod.rs")];
                    let module = [module.as_slice(), std::slice::from_ref(name)].concat();
                    open.extend(homes.iter().filter_map(|home| Some((*index.get(home)?, part, module.clone()))));
                }
            }
        }
    }
}

impl File {
    /// The crate's folder.
    pub fn package(&self) -> &str {
        self.path.split('/').next().unwrap_or_default()
    }

    /// Its folder.
    pub fn folder(&self) -> &str {
        self.path.rsplit_once('/').map_or("", |(folder, _)| folder)
    }

    /// The file's own name.
    pub fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }

    /// The line of a byte of the text, from 1.
    pub fn line(&self, offset: usize) -> usize {
        self.text.as_bytes()[..offset].iter().filter(|byte| **byte == b'\n').count() + 1
    }
}

/// The folder of a file's submodules.
fn module_folder(path: &str) -> &str {
    let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
    match name {
        "lib.rs" | "main.rs" | "mod.rs" => folder,
        _ if folder.ends_with("/src/bin") => folder,
        _ => path.strip_suffix(".rs").unwrap_or(path),
    }
}

/// The names in `mod NAME;`.
fn modules(tokens: &Tokens) -> impl Iterator<Item = &Token> {
    let is_module = |window: &&[Token]| window[0].text == "mod" && window[2].text == ";";
    tokens.0.windows(3).filter(is_module).map(|window| &window[1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_follow_the_mod_lines() {
        let files = [
            ("a/src/lib.rs", "pub mod b;\n#[cfg(test)]\nmod c;"),
            ("a/src/b.rs", "mod d;"),
            ("a/src/b/d.rs", ""),
            ("a/src/c.rs", ""),
            ("a/src/main.rs", "mod e;"),
            ("a/src/e/mod.rs", ""),
            ("a/src/f.rs", ""),
            ("a/tests/g.rs", ""),
            ("a/build.rs", ""),
            ("README.md", ""),
        ];
        let tree = Tree::new(files.map(|(path, text)| (path.to_string(), text.to_string())).into()).unwrap();
        let parts: Vec<Part> = tree.files.iter().map(|file| file.part).collect();
        use Part::*;
        assert_eq!(tree.file("a/src/b/d.rs").unwrap().module, ["b", "d"]);
        assert_eq!(parts, [Library, Library, Library, Test, Binary, Binary, Orphan, Test, Test, NotRust]);
    }
}

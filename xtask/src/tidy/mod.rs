//! `cargo xtask tidy`: checks the repository against ARCHITECTURE.md. Also a test, so `cargo test` runs it.
//!
//! A rule is a record in [`RULES`]: its name, its reason, and a check that returns the violations. Code that belongs into
//! some files only is a table in [`words`]. Rules that a common tool can check are not here: see `Cargo.toml` (lints),
//! `clippy.toml`, `deny.toml`, `typos.toml` and `taplo.toml`.

mod cycles;
mod documents;
mod links;
mod shape;
mod tokens;
mod tree;
mod words;

use std::{fmt, path::Path};

use anyhow::{Result, bail};

use tree::{File, Tree};

/// One rule for all files.
struct Rule {
    name: &'static str,
    why: &'static str,
    check: fn(&Tree) -> Vec<Finding>,
}

/// A violation of a rule.
struct Finding {
    path: String,
    line: usize,
    what: String,
}

impl Finding {
    /// At a line of a file.
    fn at(file: &File, line: usize, what: impl Into<String>) -> Finding {
        Finding { path: file.path.clone(), line, what: what.into() }
    }

    /// About a whole file.
    fn of(path: &str, what: impl Into<String>) -> Finding {
        Finding { path: path.to_string(), line: 1, what: what.into() }
    }
}

/// Every rule except [`words`].
const RULES: &[Rule] = &[
    Rule {
        name: "glob-export",
        why: "a crate's surface is read in its `lib.rs`: name what is exported",
        check: shape::glob_export,
    },
    Rule {
        name: "orphan",
        why: "a file that no `mod` line reaches is not compiled, not linted and not tested",
        check: shape::orphan,
    },
    Rule {
        name: "file-length",
        why: "a file past 600 lines has two headings in it: split it",
        check: shape::file_length,
    },
    Rule {
        name: "name",
        why: "such a name says nothing about what is inside: use the field's word for it",
        check: shape::empty_name,
    },
    Rule {
        name: "two-languages",
        why: "a constant written in Rust and in WGSL drifts: Rust injects it",
        check: shape::constant_in_two_languages,
    },
    Rule {
        name: "import-cycle",
        why: "sibling modules import each other in one direction: then each can be read and tested without the others",
        check: cycles::check,
    },
    Rule {
        name: "library-lints",
        why: "no library prints, waits, reads the environment or exits: clippy checks it if lib.rs says so",
        check: shape::library_lints,
    },
    Rule {
        name: "unfinished",
        why: "everything in the repository works: finish it, or leave it out and file an issue",
        check: shape::unfinished,
    },
    Rule {
        name: "workspace-lints",
        why: "one set of lints for all crates: `[lints] workspace = true`",
        check: shape::workspace_lints,
    },
    Rule {
        name: "architecture-name",
        why: "an architecture is one record in `model-format/src/arch/`; elsewhere ask the record",
        check: shape::architecture_name,
    },
    Rule {
        name: "chat-markup",
        why: "chat markup is one record in `model-format/src/conv_template/`; elsewhere ask the record",
        check: shape::chat_markup,
    },
    Rule { name: "machine-path", why: "a path of one machine means nothing on another", check: shape::machine_path },
    Rule {
        name: "document-path",
        why: "a document that names a file that is not there misleads its reader",
        check: documents::paths_exist,
    },
    Rule {
        name: "link",
        why: "a link to a file or heading that does not exist is a dead end",
        check: links::links_lead_somewhere,
    },
    Rule {
        name: "book",
        why: "docs/SUMMARY.md is the book's table of contents: a page outside of it is not found",
        check: links::book_is_complete,
    },
    Rule {
        name: "readme-length",
        why: "README.md is the first page of a visitor: details belong in docs/",
        check: links::readme_is_short,
    },
    Rule {
        name: "map",
        why: "ARCHITECTURE.md has a line for every source file (or its folder), so that it can be found",
        check: documents::map_is_complete,
    },
];

/// Prints all violations and fails if any exists.
pub fn run(root: &Path) -> Result<()> {
    let broken = broken_rules(root)?;
    let places: usize = broken.iter().map(|rule| rule.findings.len()).sum();
    eprint!("{}", broken.iter().map(Broken::to_string).collect::<String>());
    match places {
        0 => Ok(()),
        1 => bail!("tidy found 1 place"),
        _ => bail!("tidy found {places} places"),
    }
}

/// A rule and its violations.
struct Broken {
    name: &'static str,
    why: &'static str,
    findings: Vec<Finding>,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "rule `{}`: {}", self.name, self.why)?;
        self.findings.iter().try_for_each(|found| writeln!(f, "  {}:{}: {}", found.path, found.line, found.what))
    }
}

fn broken_rules(root: &Path) -> Result<Vec<Broken>> {
    let tree = Tree::read(root)?;
    let check = |rule: &Rule| Broken { name: rule.name, why: rule.why, findings: (rule.check)(&tree) };
    let mut broken: Vec<Broken> = RULES.iter().map(check).collect();
    broken.extend(words::WORDS.iter().map(|word| Broken {
        name: word.name,
        why: word.why,
        findings: word.check(&tree),
    }));
    broken.retain(|rule| !rule.findings.is_empty());
    Ok(broken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repository_is_tidy() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let broken: String = broken_rules(root).unwrap().iter().map(Broken::to_string).collect();
        assert!(broken.is_empty(), "\n{broken}");
    }

    /// The names of the rules that a tree of these files breaks.
    fn broken(files: &[(&str, &str)]) -> Vec<&'static str> {
        let tree = Tree::new(files.iter().map(|(path, text)| (path.to_string(), text.to_string())).collect()).unwrap();
        let rules = RULES.iter().filter(|rule| !(rule.check)(&tree).is_empty()).map(|rule| rule.name);
        let words = words::WORDS.iter().filter(|word| !word.check(&tree).is_empty()).map(|word| word.name);
        rules.chain(words).collect()
    }

    /// For each rule, a tree that violates it and a similar tree that does not.
    #[test]
    fn each_rule_fires_where_it_should_and_only_there() {
        let lib = format!("{}\nmod b;", shape::LIBRARY_LINTS);
        let lib = ("a/src/lib.rs", lib.as_str());
        let format = format!("{}\nmod arch; mod conv_template;", shape::LIBRARY_LINTS);
        let format = ("model-format/src/lib.rs", format.as_str());
        const ARCH: (&str, &str) = ("model-format/src/arch/mod.rs", "const X: A = A { model_type: \"llama\" };");
        let long = "//\n".repeat(601);
        let cases: &[(&str, &str, &str, bool)] = &[
            ("glob-export", "a/src/b.rs", "pub use c::*;", true),
            ("glob-export", "a/src/b.rs", "use c::*; pub use c::{d, e};", false),
            ("orphan", "a/src/c.rs", "", true),
            ("orphan", "a/src/b/mod.rs", "", false),
            ("file-length", "a/src/b.rs", &long, true),
            ("file-length", "a/src/b.rs", &long[3..], false),
            ("name", "a/src/utils.rs", "", true),
            ("name", "a/src/b.rs", "struct CacheManager;", true),
            ("name", "a/src/b.rs", "struct Manager1; // struct CacheManager", false),
            ("library-lints", "z/src/lib.rs", "", true),
            ("import-cycle", "a/src/lib.rs", "mod b; mod c; use c::D;", false),
            ("workspace-lints", "z/Cargo.toml", "[package]", true),
            ("workspace-lints", "z/Cargo.toml", "[package]\n\n[lints]\nworkspace = true\n", false),
            ("architecture-name", "a/src/b.rs", "let x = \"llama\";", true),
            ("architecture-name", "a/src/b.rs", "fn llama_layer() {}", true),
            ("architecture-name", "a/src/b.rs", "// llama\nlet x = \"llama.cpp\"; let y = \"not Llama 3\";", false),
            ("chat-markup", "a/src/b.rs", "let x = \"<|im_start|>user\";", true),
            ("chat-markup", "a/src/b.rs", "let x = \"a <| b\"; // <|im_start|>", false),
            ("chat-markup", "model-format/src/conv_template/x.rs", "const X: &str = \"<|im_start|>\";", false),
            ("machine-path", "a/src/b.rs", "let x = \"/home/me/models\";", true),
            ("machine-path", "a/src/b.rs", "let x = \"$HOME/models\";", false),
            ("document-path", "README.md", "see `a/src/gone.rs`", true),
            ("document-path", "README.md", "see `a/src/lib.rs` and `model.safetensors`", false),
            ("link", "README.md", "[a](a/src/gone.rs)", true),
            ("link", "README.md", "![a](gone.svg)", true),
            ("link", "README.md", "# B c\n[a](#b-d)", true),
            (
                "link",
                "README.md",
                "# B c\n[a](#b-c) [b](a/src/lib.rs) [c](a/src/) [d](https://example.org/gone)",
                false,
            ),
            ("readme-length", "README.md", &"words\n".repeat(1366), true),
            ("readme-length", "README.md", &"words\n".repeat(1365), false),
            ("binary-dependency", "a/src/b.rs", "use anyhow::Result;", true),
            ("binary-dependency", "a/src/b.rs", "// anyhow\n#[cfg(test)]\nmod tests { use anyhow::Result; }", false),
            ("binary-dependency", "a/src/main.rs", "use anyhow::Result;", false),
            ("binary-arrow", "gptq-quant/src/lib.rs", "fn f(x: weight_convert::Plan) {}", true),
            ("binary-arrow", "gptq-quant/src/main.rs", "fn main() { weight_convert::convert(); }", false),
            ("environment", "a/src/main.rs", "fn f() { std::env::set_var(a, b); }", true),
            ("environment", "a/src/main.rs", "fn f() { std::env::var(a); }", false),
            ("wasm-place", "a/src/b.rs", "#[cfg(target_arch = \"wasm32\")]", true),
            ("wasm-place", "webgpu-kernels/src/gpu/device.rs", "#[cfg(target_arch = \"wasm32\")]", false),
            ("processor-place", "a/src/b.rs", "use std::arch::x86_64::*;", true),
            ("processor-place", "a/src/b.rs", "#[target_feature(enable = \"avx2\")]\nfn f() {}", true),
            ("processor-place", "model-format/src/quant/group_quant/dot/x86.rs", "use std::arch::x86_64::*;", false),
            ("unfinished", "a/src/b.rs", "// TODO: later", true),
            ("unfinished", "a/src/b.rs", "fn f() { todo!() }", true),
            ("unfinished", "a/src/b.rs", "#[ignore] fn f() {}", true),
            ("unfinished", "a/src/b.rs", "let todos = ignore();", false),
        ];
        for (rule, path, text, expected) in cases {
            let mut files = vec![lib, format, ARCH];
            files.retain(|(other, _)| other != path);
            files.push((path, text));
            assert_eq!(broken(&files).contains(rule), *expected, "rule `{rule}` on {path}: {text}");
        }
        let two = [("a/src/b.rs", "const TILE: u32 = 8;"), ("a/src/b.wgsl", "const TILE: u32 = 8u;")];
        assert!(broken(&two).contains(&"two-languages"));
        assert!(!broken(&two[..1]).contains(&"two-languages"));
        let mapped = [lib, ("ARCHITECTURE.md", "### a\n```\nsrc/lib.rs   the crate\n```")];
        assert!(!broken(&mapped).contains(&"map"));
        let book = [lib, ("docs/SUMMARY.md", "[A](a.md)"), ("docs/a.md", ""), ("docs/b.md", "")];
        assert!(broken(&book).contains(&"book"));
        assert!(!broken(&book[..3]).contains(&"book"));
        let unmapped = [lib, ("a/src/b.rs", ""), mapped[1]];
        assert!(broken(&unmapped).contains(&"map"));
    }
}

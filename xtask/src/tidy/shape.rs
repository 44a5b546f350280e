//! Rules on the names, lengths and contents of files, and on facts that a file must not contain.

use std::collections::BTreeMap;

use super::{
    Finding,
    tokens::{Kind, Token},
    tree::{File, Part, Tree},
};

/// The line of every library: clippy refuses printing, and what clippy.toml lists.
pub const LIBRARY_LINTS: &str =
    "#![cfg_attr(not(test), warn(clippy::print_stdout, clippy::print_stderr, clippy::disallowed_methods))]";

/// `pub use a::*`.
pub fn glob_export(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (file, tokens) in tree.rust() {
        let statements = tokens.0.split(|token| token.text == ";");
        for statement in statements {
            let start = statement.windows(2).position(|pair| pair[0].text == "pub" && pair[1].text == "use");
            let Some(start) = start else { continue };
            if statement[start..].windows(2).any(|pair| pair[0].text == "::" && pair[1].text == "*") {
                findings.push(Finding::at(file, statement[start].line, "exports everything of a module"));
            }
        }
    }
    findings
}

/// Files that are not compiled.
pub fn orphan(tree: &Tree) -> Vec<Finding> {
    let orphans = tree.files.iter().filter(|file| file.part == Part::Orphan);
    orphans.map(|file| Finding::of(&file.path, "no `mod` line leads here")).collect()
}

/// Files that are too long.
pub fn file_length(tree: &Tree) -> Vec<Finding> {
    let long = tree.sources().map(|file| (file, file.text.lines().count())).filter(|(_, lines)| *lines > 600);
    long.map(|(file, lines)| Finding::of(&file.path, format!("{lines} lines"))).collect()
}

/// Files and types with an empty name, such as `Manager`.
pub fn empty_name(tree: &Tree) -> Vec<Finding> {
    const FILES: &[&str] = &["util", "utils", "helper", "helpers", "common", "misc"];
    const TYPES: &[&str] = &["Manager", "Helper", "Util", "Utils", "Handler"];
    let mut findings = Vec::new();
    for (file, tokens) in tree.rust() {
        let stem = file.name().trim_end_matches(".rs");
        if FILES.contains(&stem) {
            findings.push(Finding::of(&file.path, format!("a file named `{stem}`")));
        }
        let types = tokens.names_after(&["struct", "enum", "trait"]);
        let empty = types.filter(|name| TYPES.iter().any(|end| name.text.ends_with(end)));
        findings.extend(empty.map(|name| Finding::at(file, name.line, format!("a type named `{}`", name.text))));
    }
    findings
}

/// Constants that a shader and a Rust file beside it both define.
pub fn constant_in_two_languages(tree: &Tree) -> Vec<Finding> {
    let mut in_rust = BTreeMap::new();
    for (file, tokens) in tree.rust() {
        for name in tokens.names_after(&["const"]).filter(|name| !name.is_test && !["fn", "_"].contains(&&*name.text)) {
            in_rust.insert((file.folder(), name.text.as_str()), format!("{}:{}", file.path, name.line));
        }
    }
    let mut findings = Vec::new();
    for file in tree.files.iter().filter(|file| file.path.ends_with(".wgsl")) {
        for (index, line) in file.text.lines().enumerate() {
            let Some(rest) = line.trim_start().strip_prefix("const ") else { continue };
            let name = rest.split(|it: char| !(it == '_' || it.is_ascii_alphanumeric())).next().unwrap_or_default();
            if let Some(place) = in_rust.get(&(file.folder(), name)) {
                findings.push(Finding::at(file, index + 1, format!("`{name}` is also defined in {place}")));
            }
        }
    }
    findings
}

/// Libraries without [`LIBRARY_LINTS`].
pub fn library_lints(tree: &Tree) -> Vec<Finding> {
    let libraries = tree.files.iter().filter(|file| file.part == Part::Library && file.path.ends_with("/src/lib.rs"));
    let lax = libraries.filter(|file| !file.text.contains(LIBRARY_LINTS));
    lax.map(|file| Finding::of(&file.path, format!("no line `{LIBRARY_LINTS}`"))).collect()
}

/// Crates outside the workspace's lints.
pub fn workspace_lints(tree: &Tree) -> Vec<Finding> {
    let manifests = tree.files.iter().filter(|file| file.name() == "Cargo.toml" && file.text.contains("[package]"));
    let outside = manifests.filter(|file| !file.text.contains("[lints]\nworkspace = true"));
    outside.map(|file| Finding::of(&file.path, "no `[lints] workspace = true`")).collect()
}

/// Names of architectures outside their records.
pub fn architecture_name(tree: &Tree) -> Vec<Finding> {
    /// The records; the rules that select a template; and measurements, which name models.
    const PLACES: &[&str] =
        &["model-format/src/arch/", "model-format/src/conv_template/", "benches/", "hardware-check/", "xtask/"];
    /// Words with another meaning: programs, and the reader shared by a family.
    const OTHER_MEANINGS: &[&str] = &["llama.cpp", "llama-bench", "from_llama_like"];

    let records = tree.files.iter().filter(|file| file.path.starts_with("model-format/src/arch/"));
    let mut names = Vec::new();
    for window in records.flat_map(|file| file.tokens.0.windows(3)) {
        if window[0].text == "model_type" && window[1].text == ":" && window[2].kind == Kind::Literal {
            names.push(window[2].text.trim_matches('"'));
        }
    }
    let mut findings = Vec::new();
    for (file, token) in code_and_literals(tree, PLACES) {
        let mut text = token.text.clone();
        for other in OTHER_MEANINGS {
            text = text.replace(other, "");
        }
        // A message may speak of Llama 3. A lower-case word is knowledge, and so is any name in code.
        if token.kind == Kind::Name {
            text.make_ascii_lowercase();
        }
        let found = text.split(|it: char| !it.is_ascii_alphanumeric()).find(|word| names.contains(word));
        findings.extend(found.map(|word| Finding::at(file, token.line, format!("`{word}`"))));
    }
    findings
}

/// Markup of chat templates outside their records.
pub fn chat_markup(tree: &Tree) -> Vec<Finding> {
    const PLACES: &[&str] = &["model-format/src/conv_template", "xtask/"];
    const MARKS: &[&str] = &["[INST]", "[/INST]", "<start_of_turn>", "<end_of_turn>", "<<SYS>>", "<|im_", "<|eot_id"];
    let is_markup = |text: &str| {
        let is_between_bars = text.split_once("<|").is_some_and(|(_, rest)| rest.contains("|>"));
        is_between_bars || MARKS.iter().any(|mark| text.contains(mark))
    };
    code_and_literals(tree, PLACES)
        .filter(|(_, token)| token.kind == Kind::Literal && is_markup(&token.text))
        .map(|(file, token)| Finding::at(file, token.line, token.text.clone()))
        .collect()
}

/// Names and literals outside tests and outside some places.
fn code_and_literals<'a>(tree: &'a Tree, places: &'a [&str]) -> impl Iterator<Item = (&'a File, &'a Token)> {
    let files = tree
        .rust()
        .filter(|(file, _)| file.part != Part::Test && !places.iter().any(|place| file.path.starts_with(place)));
    files
        .flat_map(|(file, tokens)| tokens.0.iter().map(move |token| (file, token)))
        .filter(|(_, token)| token.kind != Kind::Sign && !token.is_test)
}

/// Unfinished work, also in comments.
pub fn unfinished(tree: &Tree) -> Vec<Finding> {
    const WORDS: &[&str] = &["TODO", "FIXME", "XXX", "todo!", "unimplemented!", "#[ignore"];
    let is_word = |it: char| it == '_' || it.is_ascii_alphanumeric();
    let is_whole = |line: &str, at: usize, word: &str| {
        let starts = word.starts_with(is_word) && line[..at].ends_with(is_word);
        let continues = word.ends_with(is_word) && line[at + word.len()..].starts_with(is_word);
        !starts && !continues
    };
    let mut findings = Vec::new();
    for file in tree.sources().filter(|file| !file.path.starts_with("xtask/src/tidy")) {
        for (index, line) in file.text.lines().enumerate() {
            let found = WORDS.iter().filter(|word| line.match_indices(**word).any(|(at, _)| is_whole(line, at, word)));
            findings.extend(found.map(|word| Finding::at(file, index + 1, format!("`{word}`"))));
        }
    }
    findings
}

/// Home folders of one machine.
pub fn machine_path(tree: &Tree) -> Vec<Finding> {
    let homes = ["root", "home", "Users", "work"].map(|folder| format!("/{folder}/"));
    // `$HOME/work/` and `github.com/home/` continue a path. A path of a machine starts here.
    let continues = |before: &str| before.ends_with(|it: char| it.is_ascii_alphanumeric() || "_.-/}~>".contains(it));
    let mut findings = Vec::new();
    for file in tree.files.iter().filter(|file| !file.path.starts_with("xtask/src/tidy")) {
        for home in &homes {
            let starts = file.text.match_indices(home).map(|(at, _)| at).filter(|at| !continues(&file.text[..*at]));
            findings.extend(starts.map(|at| Finding::at(file, file.line(at), format!("a path below `{home}`"))));
        }
    }
    findings
}

//! Rules on names, lengths and contents of files, and on facts that a file must not contain.

use std::collections::BTreeMap;

use super::{
    Finding,
    source::is_word,
    tree::{File, Part, Tree},
};

/// `pub use a::*`.
pub fn glob_export(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (file, source) in tree.rust() {
        for (offset, _) in source.code.match_indices("pub use ") {
            let statement = source.code[offset..].split(';').next().unwrap_or_default();
            if statement.contains("::*") {
                findings.push(Finding::at(file, offset, "everything of a module is exported"));
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
    let long = tree.sources().map(|(file, _)| (file, file.text.lines().count())).filter(|(_, lines)| *lines > 600);
    long.map(|(file, lines)| Finding::of(&file.path, format!("{lines} lines"))).collect()
}

/// Files and types with an empty name, such as `Manager`.
pub fn empty_name(tree: &Tree) -> Vec<Finding> {
    const FILES: &[&str] = &["util", "utils", "helper", "helpers", "common", "misc"];
    const TYPES: &[&str] = &["Manager", "Helper", "Util", "Utils", "Handler"];
    let mut findings = Vec::new();
    for (file, source) in tree.rust() {
        let stem = file.name().trim_end_matches(".rs");
        if FILES.contains(&stem) {
            findings.push(Finding::of(&file.path, format!("a file called `{stem}`")));
        }
        for (offset, name) in
            ["struct ", "enum ", "trait "].iter().flat_map(|keyword| names_after(&source.code, keyword))
        {
            if TYPES.iter().any(|end| name.ends_with(end)) {
                findings.push(Finding::at(file, offset, format!("a type called `{name}`")));
            }
        }
    }
    findings
}

/// Constants that stand in a shader and in the Rust files beside it under one name.
pub fn constant_in_two_languages(tree: &Tree) -> Vec<Finding> {
    let mut in_rust = BTreeMap::new();
    for (file, source) in tree.rust() {
        for (offset, name) in names_after(&source.code, "const ").filter(|(offset, _)| !source.is_test(*offset)) {
            in_rust.insert((file.folder(), name), format!("{}:{}", file.path, file.line(offset)));
        }
    }
    let mut findings = Vec::new();
    for (file, source) in tree.sources().filter(|(file, _)| file.path.ends_with(".wgsl")) {
        for (offset, name) in names_after(&source.code, "const ") {
            if let Some(place) = in_rust.get(&(file.folder(), name)) {
                findings.push(Finding::at(file, offset, format!("`{name}` is also written in {place}")));
            }
        }
    }
    findings
}

/// Libraries that do not require docs on public items.
pub fn missing_docs(tree: &Tree) -> Vec<Finding> {
    let libraries = tree.rust().filter(|(file, _)| file.part == Part::Library && file.path.ends_with("/src/lib.rs"));
    let silent = libraries.filter(|(_, source)| !source.code.contains("#![deny(missing_docs)]"));
    silent.map(|(file, _)| Finding::of(&file.path, "`#![deny(missing_docs)]` is not there")).collect()
}

/// Crates outside the workspace's lints.
pub fn workspace_lints(tree: &Tree) -> Vec<Finding> {
    let manifests = tree.files.iter().filter(|file| file.name() == "Cargo.toml" && file.text.contains("[package]"));
    let outside = manifests.filter(|file| !file.text.contains("[lints]\nworkspace = true"));
    outside.map(|file| Finding::of(&file.path, "`[lints] workspace = true` is not there")).collect()
}

/// Names of architectures outside their records.
pub fn architecture_name(tree: &Tree) -> Vec<Finding> {
    /// The records; which template fits which of them; and measurements, which name models.
    const PLACES: &[&str] =
        &["model-format/src/arch/", "model-format/src/conv_template/", "benches/", "hardware-check/", "xtask/"];
    /// Words that hold an architecture's name and mean something else: a program, and the reader shared by a family.
    const OTHER_THINGS: &[&str] = &["llama.cpp", "from_llama_like"];

    let in_records = |file: &File| file.path.starts_with("model-format/src/arch/");
    let mut names = Vec::new();
    for (file, source) in tree.rust().filter(|(file, _)| in_records(file)) {
        for (offset, _) in source.code.match_indices("model_type: \"") {
            let literal = source.literals.iter().find(|(at, _)| *at > offset && file.line(*at) == file.line(offset));
            names.extend(literal.map(|(_, name)| name.as_str()));
        }
    }
    let mut findings = Vec::new();
    for (file, source) in tree.rust().filter(|(file, _)| file.part != Part::Test) {
        if PLACES.iter().any(|place| file.path.starts_with(place)) {
            continue;
        }
        let mut text = source.without_comments.clone();
        for other in OTHER_THINGS {
            text = text.replace(other, &" ".repeat(other.len()));
        }
        let parts = text.match_indices(|character: char| character.is_ascii_alphabetic()).map(|(at, _)| at);
        let is_start = |at: &usize| *at == 0 || !text.as_bytes()[at - 1].is_ascii_alphanumeric();
        for at in parts.filter(is_start).filter(|at| !source.is_test(*at)) {
            let length = text[at..].bytes().take_while(u8::is_ascii_alphanumeric).count();
            // A message may speak of Llama 3; a name in code or in a literal of its own is knowledge.
            let is_code = source.code[at..].starts_with(&text[at..at + 1]);
            let word =
                if is_code { text[at..at + length].to_ascii_lowercase() } else { text[at..at + length].to_string() };
            if names.contains(&word.as_str()) {
                findings.push(Finding::at(file, at, format!("`{word}`")));
            }
        }
    }
    findings
}

/// Markup of chat templates outside their records.
pub fn chat_markup(tree: &Tree) -> Vec<Finding> {
    const MARKS: &[&str] = &["[INST]", "[/INST]", "<start_of_turn>", "<end_of_turn>", "<<SYS>>", "<|im_", "<|eot_id"];
    let in_records = |file: &File| file.path.starts_with("model-format/src/conv_template") || file.package() == "xtask";
    let mut findings = Vec::new();
    for (file, source) in tree.rust().filter(|(file, _)| file.part != Part::Test && !in_records(file)) {
        for (offset, literal) in source.literals.iter().filter(|(offset, _)| !source.is_test(*offset)) {
            let between_bars = literal.split_once("<|").is_some_and(|(_, rest)| rest.contains("|>"));
            if between_bars || MARKS.iter().any(|mark| literal.contains(mark)) {
                findings.push(Finding::at(file, *offset, format!("\"{}\"", literal.escape_debug())));
            }
        }
    }
    findings
}

/// Folders of somebody's own machine.
pub fn machine_path(tree: &Tree) -> Vec<Finding> {
    let homes = ["root", "home", "Users", "work"].map(|folder| format!("/{folder}/"));
    let mut findings = Vec::new();
    for file in tree.files.iter().filter(|file| !file.path.starts_with("xtask/src/tidy")) {
        for home in &homes {
            let offsets = file.text.match_indices(home).map(|(at, _)| at);
            // `$HOME/work/` and `github.com/home/` go on from something; a path of a machine starts there.
            let starts = offsets.filter(|at| *at == 0 || !is_path(file.text.as_bytes()[at - 1]));
            findings.extend(starts.map(|at| Finding::at(file, at, format!("a path below `{home}`"))));
        }
    }
    findings
}

fn is_path(byte: u8) -> bool {
    is_word(byte) || matches!(byte, b'.' | b'-' | b'/' | b'}' | b'~' | b'>')
}

/// The names that follow a keyword, with their offsets.
fn names_after<'a>(code: &'a str, keyword: &'a str) -> impl Iterator<Item = (usize, &'a str)> {
    code.match_indices(keyword).filter_map(move |(at, _)| {
        let starts_a_word = at == 0 || !is_word(code.as_bytes()[at - 1]);
        let rest = &code[at + keyword.len()..];
        let name = &rest[..rest.bytes().take_while(|byte| is_word(*byte)).count()];
        (starts_a_word && !name.is_empty() && name != "_" && name != "fn").then_some((at, name))
    })
}

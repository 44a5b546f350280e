//! The shell commands that documents show in fenced blocks, split into words as a shell splits them.
//!
//! Each is checked against the program's own definition of its flags: `cargo xtask` and cargo's targets here, the other
//! programs in `benches/tests/documented_commands.rs`, which compiles this file too.

use std::{fs, io, path::Path};

/// One command of a document.
#[derive(Debug)]
pub struct Command {
    /// Path of the document and line of the command, `README.md:12`.
    pub place: String,
    /// The program, without its folder.
    pub program: String,
    pub arguments: Vec<String>,
}

/// Every command in the fenced blocks of every Markdown file below `root`.
pub fn documented(root: &Path) -> io::Result<Vec<Command>> {
    let mut documents = Vec::new();
    find_documents(root, root, &mut documents)?;
    documents.sort();
    let mut commands = Vec::new();
    for path in documents {
        let text = fs::read_to_string(root.join(&path))?;
        commands.extend(in_document(&path, &text));
    }
    Ok(commands)
}

fn find_documents(root: &Path, folder: &Path, documents: &mut Vec<String>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // Folders of git, cargo and npm, and build outputs.
        if name.starts_with('.') || ["target", "node_modules", "dist", "package"].contains(&name.as_ref()) {
            continue;
        }
        if path.is_dir() {
            find_documents(root, &path, documents)?;
        } else if name.ends_with(".md") {
            let below = path.strip_prefix(root).expect("a path below the root");
            documents.push(below.to_string_lossy().replace('\\', "/"));
        }
    }
    Ok(())
}

/// The commands of one document.
pub fn in_document(path: &str, text: &str) -> Vec<Command> {
    let mut commands = Vec::new();
    let mut shell = None;
    let mut pending = String::new();
    for (index, line) in text.lines().enumerate() {
        if let Some(language) = line.trim_start().strip_prefix("```") {
            shell = match shell {
                None => Some(["", "sh", "bash"].contains(&language.trim())),
                Some(_) => None,
            };
        } else if shell == Some(true) {
            if let Some(begin) = line.strip_suffix('\\') {
                pending.push_str(begin);
                continue;
            }
            pending.push_str(line);
            let place = format!("{path}:{}", index + 1);
            let simple = split(&std::mem::take(&mut pending)).into_iter();
            commands.extend(simple.filter_map(|words| command(&place, words)));
        }
    }
    commands
}

/// A command of its words, without prompt, keywords and assignments before the program.
fn command(place: &str, words: Vec<String>) -> Option<Command> {
    let is_assignment = |word: &str| {
        let name = word.split_once('=').map_or("", |(name, _)| name);
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_')
    };
    let mut words =
        words.into_iter().skip_while(|word| ["$", "do", "then"].contains(&word.as_str()) || is_assignment(word));
    let program = words.next()?.rsplit('/').next()?.to_string();
    Some(Command { place: place.to_string(), program, arguments: words.collect() })
}

/// A line's simple commands, each as its words: quotes and comments are removed, redirections dropped.
fn split(line: &str) -> Vec<Vec<String>> {
    let mut commands = vec![Vec::new()];
    let mut word: Option<String> = None;
    let mut is_redirection = false;
    let mut characters = line.chars().peekable();
    loop {
        let next = characters.next();
        match next {
            Some('\'') => word.get_or_insert_default().extend(characters.by_ref().take_while(|it| *it != '\'')),
            Some('"') => word.get_or_insert_default().extend(characters.by_ref().take_while(|it| *it != '"')),
            Some('\\') => word.get_or_insert_default().extend(characters.next()),
            Some('#') if word.is_none() => characters = "".chars().peekable(),
            None | Some(' ' | '|' | '&' | ';' | '>' | '<') => {
                match word.take() {
                    // The file of a redirection.
                    Some(_) if is_redirection => is_redirection = false,
                    Some(word) => commands.last_mut().expect("never empty").push(word),
                    None => {}
                }
                match next {
                    None => break,
                    Some('>' | '<') => is_redirection = true,
                    Some('|' | '&' | ';') => commands.push(Vec::new()),
                    _ => {}
                }
            }
            Some(other) => word.get_or_insert_default().push(other),
        }
    }
    commands.retain(|words| !words.is_empty());
    commands
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The commands of a document, each as its words joined by `|`.
    fn check(document: &str, expected: &[&str]) {
        let commands = in_document("a.md", document);
        let found = commands.iter().map(|it| format!("{}|{}", it.program, it.arguments.join("|")));
        assert_eq!(found.collect::<Vec<_>>(), expected, "{document}");
    }

    #[test]
    fn commands_are_split_as_by_a_shell() {
        check("a b\n```\na b  # c\n```\n`c d`", &["a|b"]);
        check("```sh\nX=1 ./t/a 'b c' \"d\" e\\ f | g -p - > h && i\n```", &["a|b c|d|e f", "g|-p|-", "i|"]);
        check("```\nfor s in a b; do c --d $s; done\n```", &["for|s|in|a|b", "c|--d|$s", "done|"]);
        check("```\na \\\n  --b\n```\n```rust\nc d\n```\n```\n$ e\n```", &["a|--b", "e|"]);
    }
}

//! [`Command`]: what begins with a slash.

use crate::{Error, Result};

/// A command of the chat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Lists the commands.
    Help,
    /// Prints what the last answer took.
    Stats,
    /// Begins a new conversation.
    Reset,
    /// Ends the chat.
    Exit,
    /// Changes settings, `name=value`; prints them if empty.
    Set(String),
    /// Sets the system message and begins a new conversation; prints it if empty.
    System(String),
}

/// A command's names, its argument, and what it does.
struct Entry {
    names: &'static [&'static str],
    argument: &'static str,
    what: &'static str,
    make: fn(String) -> Command,
}

const ENTRIES: &[Entry] = &[
    Entry { names: &["/help", "/?"], argument: "", what: "this list", make: |_| Command::Help },
    Entry {
        names: &["/stats", "/metrics"],
        argument: "",
        what: "tokens and speed of the last answer",
        make: |_| Command::Stats,
    },
    Entry { names: &["/reset", "/clear"], argument: "", what: "begin a new conversation", make: |_| Command::Reset },
    Entry {
        names: &["/set"],
        argument: "NAME=VALUE",
        what: "change settings, several with `;` between; without any, show them",
        make: Command::Set,
    },
    Entry {
        names: &["/system"],
        argument: "TEXT",
        what: "set the system message and begin a new conversation; without any, show it",
        make: Command::System,
    },
    Entry { names: &["/exit", "/quit", "/bye"], argument: "", what: "leave (so does Ctrl-D)", make: |_| Command::Exit },
];

impl Command {
    /// Reads a line. `None`: it is no command but something to say.
    pub fn parse(line: &str) -> Result<Option<Command>> {
        let line = line.trim();
        if !line.starts_with('/') || line.contains('\n') {
            return Ok(None);
        }
        let (name, argument) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let argument = argument.trim();
        let Some(entry) = ENTRIES.iter().find(|entry| entry.names.contains(&name)) else {
            return Err(Error::Command { message: format!("unknown command: `{name}`"), hint: Command::names() });
        };
        if entry.argument.is_empty() && !argument.is_empty() {
            let message = format!("`{name}` takes no argument, found: {argument}");
            return Err(Error::Command { message, hint: "`/help` lists the commands".into() });
        }
        Ok(Some((entry.make)(argument.to_string())))
    }

    /// The list of `/help`.
    pub fn help() -> String {
        let mut out = String::new();
        for Entry { names, argument, what, .. } in ENTRIES {
            let usage = format!("{} {argument}", names.join(", "));
            out.push_str(&format!("  {usage:24}  {what}\n"));
        }
        out.push_str("  a line that ends in \\ goes on in the next; \"\"\" begins and ends a text of several lines\n");
        out.push_str("  Ctrl-C stops an answer; at the prompt, twice, it leaves\n");
        out
    }

    fn names() -> String {
        let names: Vec<&str> = ENTRIES.iter().map(|entry| entry.names[0]).collect();
        format!("commands: {}", names.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read() {
        let parse = |line: &str| Command::parse(line).unwrap();
        assert_eq!(parse("/help"), Some(Command::Help));
        assert_eq!(parse(" /clear  "), Some(Command::Reset));
        assert_eq!(parse("/bye"), Some(Command::Exit));
        assert_eq!(parse("/quit"), Some(Command::Exit));
        assert_eq!(parse("/set"), Some(Command::Set(String::new())));
        assert_eq!(parse("/set  seed=3"), Some(Command::Set("seed=3".into())));
        assert_eq!(parse("/system You are a pirate."), Some(Command::System("You are a pirate.".into())));
        assert_eq!(parse("hello /exit"), None);
        assert_eq!(parse("/etc is a folder\nis it?"), None);
        assert!(Command::parse("/sett").unwrap_err().hint().unwrap().contains("/set"));
        assert!(Command::parse("/exit now").is_err());
    }

    #[test]
    fn help_names_every_command() {
        let help = Command::help();
        assert!(ENTRIES.iter().flat_map(|entry| entry.names).all(|name| help.contains(name)));
    }
}

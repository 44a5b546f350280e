//! [`Command`]: a line that begins with a slash.

use crate::{Error, Result};

/// A command of the chat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Lists the commands.
    Help,
    /// Prints token counts and speed of the last answer.
    Stats,
    /// Starts a new conversation.
    Reset,
    /// Ends the chat.
    Exit,
    /// Changes settings, `name=value`; prints them if empty.
    Set(String),
    /// Sets the system message and starts a new conversation; prints it if empty.
    System(String),
}

/// A row of the table of commands.
struct Entry {
    names: &'static [&'static str],
    argument: &'static str,
    effect: &'static str,
    make: fn(String) -> Command,
}

const ENTRIES: &[Entry] = &[
    Entry { names: &["/help", "/?"], argument: "", effect: "this list", make: |_| Command::Help },
    Entry {
        names: &["/stats", "/metrics"],
        argument: "",
        effect: "tokens and speed of the last answer",
        make: |_| Command::Stats,
    },
    Entry { names: &["/reset", "/clear"], argument: "", effect: "start a new conversation", make: |_| Command::Reset },
    Entry {
        names: &["/set"],
        argument: "NAME=VALUE",
        effect: "change settings, separated by `;`; without an argument, show them",
        make: Command::Set,
    },
    Entry {
        names: &["/system"],
        argument: "TEXT",
        effect: "set the system message and start a new conversation; without an argument, show it",
        make: Command::System,
    },
    Entry {
        names: &["/exit", "/quit", "/bye"],
        argument: "",
        effect: "leave (so does Ctrl-D)",
        make: |_| Command::Exit,
    },
];

impl Command {
    /// Parses a line. `None` if it is a message.
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
            return Err(Error::Command { message, hint: "`/help` lists all commands".into() });
        }
        Ok(Some((entry.make)(argument.to_string())))
    }

    /// The list of `/help`.
    pub fn help() -> String {
        let mut out = String::new();
        for Entry { names, argument, effect, .. } in ENTRIES {
            let usage = format!("{} {argument}", names.join(", "));
            out.push_str(&format!("  {usage:24}  {effect}\n"));
        }
        out.push_str(
            "  \\ at the end of a line continues the message; \"\"\" begins and ends a message of several lines\n",
        );
        out.push_str("  Ctrl-C stops an answer; twice at the prompt, it leaves\n");
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
    fn commands_are_parsed() {
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

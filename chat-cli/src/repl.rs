//! [`Repl`]: reads messages, prints answers, and keeps the conversation.
//!
//! Answers go to `out`, everything else to `err`.

use std::io::Write;

use infer_core::{FinishReason, Message};

use crate::{Answer, Assistant, Command, Printable, Result, Settings, report};

/// A source of input lines.
pub trait Lines {
    /// Shows `prompt` and returns the next line.
    fn read(&mut self, prompt: &str) -> Result<Line>;
}

/// Input from the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// A line without its newline. Pasted text may contain several lines.
    Text(String),
    /// Ctrl-C.
    Interrupted,
    /// Ctrl-D, or the end of the input.
    End,
}

const PROMPT: &str = ">>> ";
const CONTINUED: &str = "... ";
const QUOTES: &str = "\"\"\"";

/// A conversation in the terminal.
pub struct Repl<'a> {
    assistant: &'a mut dyn Assistant,
    settings: Settings,
    system: Option<String>,
    messages: Vec<Message>,
    last: Option<Answer>,
    /// True if answers go to a terminal; removes control sequences.
    to_terminal: bool,
    out: &'a mut dyn Write,
    err: &'a mut dyn Write,
}

/// A complete input.
enum Input {
    /// A message or a command.
    Line(String),
    /// A message, even if it looks like a command.
    Quoted(String),
    Cancelled,
    End,
}

impl<'a> Repl<'a> {
    /// A new conversation. Set `to_terminal` if `out` is a terminal; it removes control sequences from answers.
    pub fn new(
        assistant: &'a mut dyn Assistant,
        settings: Settings,
        system: Option<String>,
        to_terminal: bool,
        out: &'a mut dyn Write,
        err: &'a mut dyn Write,
    ) -> Repl<'a> {
        Repl { assistant, settings, system, messages: Vec::new(), last: None, to_terminal, out, err }
    }

    /// Runs until the user leaves. Prints errors of messages and commands and continues; returns errors of the terminal.
    pub fn run(&mut self, lines: &mut dyn Lines) -> Result<()> {
        let mut leaving = false;
        loop {
            let input = read_message(lines)?;
            let was_leaving = std::mem::take(&mut leaving);
            let done = match input {
                Input::End => return Ok(()),
                Input::Cancelled if was_leaving => return Ok(()),
                Input::Cancelled => {
                    leaving = true;
                    writeln!(self.err, "Ctrl-C again, Ctrl-D or /exit to leave").map_err(Into::into)
                }
                Input::Quoted(text) => self.send(text),
                Input::Line(text) => match Command::parse(&text) {
                    Ok(Some(Command::Exit)) => return Ok(()),
                    Ok(Some(command)) => self.execute(command),
                    Ok(None) if text.trim().is_empty() => Ok(()),
                    Ok(None) => self.send(text),
                    Err(error) => Err(error),
                },
            };
            if let Err(error) = done {
                if matches!(error, crate::Error::Io(_)) {
                    return Err(error);
                }
                writeln!(self.err, "error: {error}")?;
                if let Some(hint) = error.hint() {
                    writeln!(self.err, "hint: {hint}")?;
                }
            }
        }
    }

    /// The conversation so far.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// Sends a message and prints the answer. If answering fails, removes the message again.
    fn send(&mut self, text: String) -> Result<()> {
        if let (true, Some(system)) = (self.messages.is_empty(), &self.system) {
            self.messages.push(Message::system(system.clone()));
        }
        self.messages.push(Message::user(text));
        let mut printable = Printable::default();
        let (out, to_terminal) = (&mut *self.out, self.to_terminal);
        let answer = self.assistant.answer(&self.messages, self.settings.params(), &mut |text| {
            let clean = if to_terminal { printable.clean(text) } else { text.to_string() };
            out.write_all(clean.as_bytes())?;
            out.flush()
        });
        match answer {
            Ok(answer) => {
                writeln!(self.out)?;
                self.out.flush()?;
                match answer.finish_reason {
                    None => writeln!(self.err, "(stopped)")?,
                    Some(FinishReason::ContextFull) => {
                        writeln!(
                            self.err,
                            "(the context is full; /set shift=true drops the oldest tokens, /reset starts over)"
                        )?;
                    }
                    Some(FinishReason::Length) => writeln!(self.err, "{}", report::ENDED_BY_LENGTH)?,
                    Some(FinishReason::Stop) => {}
                }
                self.messages.push(Message::assistant(answer.text.clone()));
                self.last = Some(answer);
                Ok(())
            }
            Err(error) => {
                self.messages.pop();
                Err(error)
            }
        }
    }

    fn execute(&mut self, command: Command) -> Result<()> {
        match command {
            Command::Help => write!(self.err, "{}", Command::help())?,
            Command::Stats => match &self.last {
                Some(answer) => writeln!(self.err, "{}", report::stats_line(&answer.stats))?,
                None => writeln!(self.err, "no answer yet")?,
            },
            Command::Reset => {
                self.start_over();
                writeln!(self.err, "new conversation")?;
            }
            Command::Set(text) if text.is_empty() => write!(self.err, "{}", self.settings.show())?,
            Command::Set(text) => self.settings.set(&text)?,
            Command::System(text) if text.is_empty() => match &self.system {
                Some(system) => writeln!(self.err, "{system}")?,
                None => writeln!(self.err, "no system message except the default of the model's template")?,
            },
            Command::System(text) => {
                self.system = Some(text);
                self.start_over();
                writeln!(self.err, "new conversation with this system message")?;
            }
            Command::Exit => unreachable!("handled by run"),
        }
        Ok(())
    }

    fn start_over(&mut self) {
        self.messages.clear();
        self.last = None;
        self.assistant.reset();
    }
}

/// Reads one input: a line, several lines joined by backslashes at their ends, or text between `"""`.
fn read_message(lines: &mut dyn Lines) -> Result<Input> {
    let mut text = match lines.read(PROMPT)? {
        Line::Text(text) => text,
        Line::Interrupted => return Ok(Input::Cancelled),
        Line::End => return Ok(Input::End),
    };
    loop {
        let is_quoted = text.trim_start().starts_with(QUOTES);
        if let Some(inner) = text.trim().strip_prefix(QUOTES).and_then(|inner| inner.strip_suffix(QUOTES)) {
            return Ok(Input::Quoted(inner.trim_matches('\n').to_string()));
        }
        if !is_quoted && text.ends_with('\\') {
            text.pop();
        } else if !is_quoted {
            return Ok(Input::Line(text));
        }
        match lines.read(CONTINUED)? {
            Line::Text(more) => {
                text.push('\n');
                text.push_str(&more);
            }
            // Discard the incomplete message.
            Line::Interrupted => return Ok(Input::Cancelled),
            Line::End => return Ok(if is_quoted { Input::End } else { Input::Line(text) }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use infer_core::{ChatDefaults, FinishReason, SamplingParams, Stats, chat_template::Role};

    use super::*;

    /// Answers from a list, and records its inputs.
    #[derive(Default)]
    struct Scripted {
        answers: Vec<&'static str>,
        asked: Vec<Vec<Message>>,
        params: Option<SamplingParams>,
        resets: usize,
    }

    impl Assistant for Scripted {
        fn answer(
            &mut self,
            messages: &[Message],
            params: &SamplingParams,
            show: &mut dyn FnMut(&str) -> io::Result<()>,
        ) -> Result<Answer> {
            self.asked.push(messages.to_vec());
            self.params = Some(params.clone());
            let text = self.answers.remove(0);
            if text == "FULL" {
                return Err(infer_core::Error::ContextFull { tokens: 99, context: 10 }.into());
            }
            for c in text.chars() {
                show(c.encode_utf8(&mut [0; 4]))?;
            }
            let finish_reason = match text.chars().last() {
                Some('-') => None,
                Some('…') => Some(FinishReason::Length),
                _ => Some(FinishReason::Stop),
            };
            let stats = Stats { prompt_tokens: 5, generated_tokens: 3, ..Stats::default() };
            Ok(Answer {
                text: text.into(),
                prompt_tokens: vec![],
                tokens: vec![],
                finish_reason,
                stats,
                logprobs: vec![],
            })
        }

        fn reset(&mut self) {
            self.resets += 1;
        }
    }

    struct Script(Vec<Line>, Vec<String>);

    impl Lines for Script {
        fn read(&mut self, prompt: &str) -> Result<Line> {
            self.1.push(prompt.into());
            Ok(if self.0.is_empty() { Line::End } else { self.0.remove(0) })
        }
    }

    struct Outcome {
        assistant: Scripted,
        messages: Vec<Message>,
        out: String,
        err: String,
        prompts: Vec<String>,
        unread: usize,
    }

    fn settings() -> Settings {
        Settings::new(&ChatDefaults::default(), Vec::new(), |_| {}).unwrap()
    }

    fn chat(answers: &[&'static str], lines: &[&str], system: Option<&str>) -> Outcome {
        let line = |text: &&str| match *text {
            "^C" => Line::Interrupted,
            "^D" => Line::End,
            text => Line::Text(text.into()),
        };
        let mut script = Script(lines.iter().map(line).collect(), Vec::new());
        let mut assistant = Scripted { answers: answers.to_vec(), ..Scripted::default() };
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut repl = Repl::new(&mut assistant, settings(), system.map(str::to_string), true, &mut out, &mut err);
        repl.run(&mut script).unwrap();
        let messages = repl.messages().to_vec();
        Outcome {
            messages,
            assistant,
            out: String::from_utf8(out).unwrap(),
            err: String::from_utf8(err).unwrap(),
            prompts: script.1,
            unread: script.0.len(),
        }
    }

    #[test]
    fn the_conversation_holds_both_sides() {
        let chat = chat(&["One.", "Two."], &["first", "", "second"], Some("Be brief."));
        assert_eq!(chat.out, "One.\nTwo.\n");
        assert_eq!(chat.err, "");
        let roles: Vec<Role> = chat.messages.iter().map(|m| m.role).collect();
        assert_eq!(roles, [Role::System, Role::User, Role::Assistant, Role::User, Role::Assistant]);
        assert_eq!(chat.assistant.asked[1], chat.messages[..4]);
        assert_eq!(chat.messages[2].content, "One.");
    }

    #[test]
    fn commands_are_obeyed() {
        let chat = chat(
            &["a", "b", "c"],
            &[
                "/stats",
                "one",
                "/stats",
                "/reset",
                "/stats",
                "two",
                "/system Arr.",
                "three",
                "/system",
                "/set top_k=3",
                "/set",
                "/set nonsense",
                "/help",
                "/nothing",
                "/exit",
                "never read",
            ],
            None,
        );
        assert_eq!(chat.out, "a\nb\nc\n");
        assert_eq!(chat.assistant.asked[1], [Message::user("two")]);
        assert_eq!(chat.assistant.asked[2], [Message::system("Arr."), Message::user("three")]);
        assert_eq!(chat.assistant.resets, 2);
        assert_eq!(chat.unread, 1);
        for expected in [
            "no answer yet",
            "prompt: 5 tokens",
            "top_k               3           you\n",
            "max_tokens          2048        default\n",
            "Arr.",
            "/help",
            "error: unknown command: `/nothing`",
            "hint:",
        ] {
            assert!(chat.err.contains(expected), "{expected:?} in {}", chat.err);
        }
        assert_eq!(chat.err.matches("no answer yet").count(), 2);
    }

    #[test]
    fn settings_reach_the_assistant() {
        let chat = chat(&["a"], &["/set temperature=0.25;seed=9", "hello"], None);
        let params = chat.assistant.params.unwrap();
        assert_eq!((params.temperature, params.seed), (0.25, Some(9)));
    }

    #[test]
    fn messages_may_have_many_lines() {
        let chat = chat(
            &["a", "b", "c", "d"],
            &["one \\", "two\\", "three", "\"\"\"", "/exit", "x", "\"\"\"", "\"\"\"/exit\"\"\"", "pasted\ntwice"],
            None,
        );
        let said: Vec<&str> = chat.assistant.asked.iter().map(|m| m.last().unwrap().content.as_str()).collect();
        assert_eq!(said, ["one \ntwo\nthree", "/exit\nx", "/exit", "pasted\ntwice"]);
        assert_eq!(chat.prompts[..4], [">>> ", "... ", "... ", ">>> "]);
    }

    #[test]
    fn ctrl_c_leaves_only_if_pressed_twice() {
        let once = chat(&["a"], &["^C", "hello", "^C", "/stats", "^C", "^C", "never"], None);
        assert_eq!((once.out.as_str(), once.unread), ("a\n", 1));
        assert_eq!(once.err.matches("Ctrl-C again").count(), 3);
        let half = chat(&["a"], &["half\\", "^C", "whole", "^D", "never"], None);
        assert_eq!(half.assistant.asked[0], [Message::user("whole")]);
        assert_eq!(half.unread, 1);
    }

    #[test]
    fn an_interrupted_answer_stays_in_the_conversation() {
        let chat = chat(&["I was go-", "Fine."], &["tell me", "go on"], None);
        assert!(chat.err.contains("(stopped)"));
        assert_eq!(chat.assistant.asked[1][1], Message::assistant("I was go-"));
    }

    #[test]
    fn an_answer_that_ends_by_its_length_says_so() {
        let chat = chat(&["Once upon a…", "The end."], &["tell me", "go on"], None);
        assert_eq!(chat.err, format!("{}\n", report::ENDED_BY_LENGTH));
    }

    #[test]
    fn a_failed_message_is_removed() {
        let chat = chat(&["FULL", "ok"], &["too long", "short"], None);
        assert!(chat.err.contains("error: the conversation has 99 tokens") && chat.err.contains("hint:"));
        assert_eq!(chat.assistant.asked[1], [Message::user("short")]);
    }

    #[test]
    fn answers_cannot_control_the_terminal() {
        assert_eq!(chat(&["\u{1b}[31mred\u{7}"], &["x"], None).out, "red\n");
    }

    #[test]
    fn a_closed_output_ends_the_chat() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut assistant = Scripted { answers: vec!["a", "b"], ..Scripted::default() };
        let mut err = Vec::new();
        let mut out = Closed;
        let mut repl = Repl::new(&mut assistant, settings(), None, false, &mut out, &mut err);
        let mut script = Script(vec![Line::Text("x".into()), Line::Text("y".into())], Vec::new());
        let crate::Error::Io(error) = repl.run(&mut script).unwrap_err() else { panic!("not an I/O error") };
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(script.0.len(), 1);
    }
}

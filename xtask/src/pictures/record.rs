//! Records a terminal session as an asciicast: starts a shell, types commands at its prompts, and notes its output with times.
//!
//! `script` of util-linux provides the pseudo-terminal. The shell, the programs and their speed are real; the user is not.

use std::{
    env,
    io::{Read, Write},
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::json;

const WIDTH: u16 = 96;
const HEIGHT: u16 = 28;
/// Time between two keys, and before the first key of a line.
const KEY: Duration = Duration::from_millis(55);
const THINKING: Duration = Duration::from_millis(900);
/// The terminal waits for input if it shows a prompt and prints nothing for this time.
const QUIET: Duration = Duration::from_millis(250);
/// Time limit of one command or answer.
const PATIENCE: Duration = Duration::from_secs(180);

/// The session: the prompt to wait for, and the line to type. The last prompt ends the recording.
fn session(model: &str) -> Vec<(&'static str, String)> {
    vec![
        ("$", format!("chat-cli chat {model} --device cpu --temperature 0")),
        (">>>", "What is the capital of France?".into()),
        (">>>", "Write a Python function that adds two numbers.".into()),
        (">>>", "/stats".into()),
        (">>>", String::new()),
    ]
}

/// Records a chat with the model in `folder/model`. Returns the asciicast.
pub fn record(root: &Path, folder: &Path, model: &str) -> Result<String> {
    let mut terminal = Terminal::open(root, folder)?;
    for (prompt, line) in session(model) {
        terminal.wait_for(prompt)?;
        terminal.enter(&line)?;
    }
    let header = json!({
        "version": 2,
        "width": WIDTH,
        "height": HEIGHT,
        "title": "chat-cli with SmolLM2-135M-Instruct, q4f16_1",
        "idle_time_limit": 1.2,
        "command": "cargo xtask pictures --terminal",
        "device": format!("{}, {} cores", cpu(), thread::available_parallelism().map_or(1, |cores| cores.get())),
        "commit": commit(root)?,
    });
    let outputs =
        terminal.outputs.iter().map(|(time, text)| json!([(time * 1e3).round() / 1e3, "o", text]).to_string());
    Ok([header.to_string()].into_iter().chain(outputs).map(|line| line + "\n").collect())
}

/// A shell in a pseudo-terminal.
struct Terminal {
    child: Child,
    keys: ChildStdin,
    bytes: Receiver<Vec<u8>>,
    screen: vt100::Parser,
    start: Instant,
    /// Everything printed so far, with seconds since the start.
    outputs: Vec<(f64, String)>,
    /// The beginning of a character whose end has not arrived yet.
    incomplete: Vec<u8>,
}

impl Terminal {
    fn open(root: &Path, folder: &Path) -> Result<Terminal> {
        let shell = format!("stty rows {HEIGHT} cols {WIDTH}; exec env PS1='$ ' bash --norc --noprofile -i");
        let programs = root.join("target/release");
        let path = env::var_os("PATH").unwrap_or_default();
        let path = env::join_paths([programs].into_iter().chain(env::split_paths(&path))).context("`PATH` is odd")?;
        let mut command = Command::new("script");
        command.args(["--quiet", "--flush", "--command", &shell, "/dev/null"]).current_dir(folder);
        command.env("PATH", path).env("TERM", "xterm-256color").env("SHELL", "/bin/bash");
        // No bracketed paste, no history.
        command.env("INPUTRC", "/dev/null").env("HISTFILE", "").env("XDG_STATE_HOME", folder.join("state"));
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run `script`; install util-linux")?;
        let keys = child.stdin.take().expect("stdin is a pipe");
        let mut stdout = child.stdout.take().expect("stdout is a pipe");
        let (send, bytes) = channel();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = stdout.read(&mut buffer) {
                if send.send(buffer[..read].to_vec()).is_err() {
                    return;
                }
            }
        });
        let size = |cells: u16| cells.try_into().expect("a size above zero");
        let screen = vt100::Parser::new(size(HEIGHT), size(WIDTH), 0);
        Ok(Terminal { child, keys, bytes, screen, start: Instant::now(), outputs: Vec::new(), incomplete: Vec::new() })
    }

    /// Notes the output until the row of the cursor is `prompt` and the terminal is quiet.
    fn wait_for(&mut self, prompt: &str) -> Result<()> {
        let limit = Instant::now() + PATIENCE;
        while Instant::now() < limit {
            match self.bytes.recv_timeout(QUIET) {
                Ok(bytes) => self.note(&bytes),
                Err(RecvTimeoutError::Timeout) if self.row() == prompt => return Ok(()),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => bail!("the shell ended before the prompt `{prompt}`"),
            }
        }
        bail!(
            "no prompt `{prompt}` in {} s; the terminal shows:\n{}",
            PATIENCE.as_secs(),
            self.screen.screen().contents()
        )
    }

    /// Types a line, and Enter unless the line is empty.
    fn enter(&mut self, line: &str) -> Result<()> {
        if line.is_empty() {
            return Ok(());
        }
        self.listen(THINKING);
        for key in line.chars().chain(['\r']) {
            write!(self.keys, "{key}").and_then(|()| self.keys.flush()).context("cannot type into the terminal")?;
            self.listen(KEY);
        }
        Ok(())
    }

    fn listen(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            match self.bytes.recv_timeout(left) {
                Ok(bytes) => self.note(&bytes),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn note(&mut self, bytes: &[u8]) {
        self.screen.process(bytes);
        self.incomplete.extend_from_slice(bytes);
        let whole = match std::str::from_utf8(&self.incomplete) {
            Ok(text) => text.len(),
            Err(error) => error.valid_up_to(),
        };
        let rest = self.incomplete.split_off(whole);
        let text = String::from_utf8(std::mem::replace(&mut self.incomplete, rest)).expect("checked above");
        if !text.is_empty() {
            self.outputs.push((self.start.elapsed().as_secs_f64(), text));
        }
    }

    /// The row of the cursor.
    fn row(&self) -> String {
        let screen = self.screen.screen();
        let (row, _) = screen.cursor_position();
        let text = screen.rows(0, WIDTH).nth(row.into()).unwrap_or_default();
        text.trim_end().to_string()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // The shell ends with its terminal.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Name of the processor.
fn cpu() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    name.map_or_else(|| env::consts::ARCH.into(), |(_, name)| name.into())
}

fn commit(root: &Path) -> Result<String> {
    let output = Command::new("git").args(["rev-parse", "--short=7", "HEAD"]).current_dir(root).output();
    let output = output.context("cannot run `git`")?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().into())
}

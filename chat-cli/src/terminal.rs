//! The keyboard: [`Editor`] reads lines, [`Interrupt`] hears Ctrl-C.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::Context;
use chat_cli::{Line, Lines};
use rustyline::config::Configurer;
use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;

/// Ctrl-C. While an answer is being written, once ends the answer; otherwise, or twice, it ends the program.
#[derive(Clone)]
pub struct Interrupt {
    state: Arc<AtomicU8>,
}

const IDLE: u8 = 0;
const ANSWERING: u8 = 1;
const INTERRUPTED: u8 = 2;

/// The exit code of a program that was interrupted.
const EXIT_CODE: i32 = 130;

impl Interrupt {
    /// Listens from now on.
    pub fn install() -> anyhow::Result<Interrupt> {
        let state = Arc::new(AtomicU8::new(IDLE));
        let shared = state.clone();
        ctrlc::set_handler(move || {
            if shared.compare_exchange(ANSWERING, INTERRUPTED, Ordering::SeqCst, Ordering::SeqCst).is_err() {
                std::process::exit(EXIT_CODE);
            }
        })
        .context("cannot listen for Ctrl-C")?;
        Ok(Interrupt { state })
    }

    /// An answer begins; it ends when what is returned is dropped.
    pub fn begin(&self) -> Answering<'_> {
        self.state.store(ANSWERING, Ordering::SeqCst);
        Answering { state: &self.state }
    }
}

/// While an answer is being written.
pub struct Answering<'a> {
    state: &'a AtomicU8,
}

impl Answering<'_> {
    /// Whether the answer should end.
    pub fn is_interrupted(&self) -> bool {
        self.state.load(Ordering::SeqCst) == INTERRUPTED
    }
}

impl Drop for Answering<'_> {
    fn drop(&mut self) {
        self.state.store(IDLE, Ordering::SeqCst);
    }
}

/// Reads lines with editing and history on a terminal, plainly elsewhere.
pub struct Editor {
    editor: rustyline::Editor<(), FileHistory>,
    history: Option<PathBuf>,
}

impl Editor {
    /// An editor. `keep_history` also remembers lines from chat to chat, in a file that only the user may read.
    pub fn new(keep_history: bool) -> anyhow::Result<Editor> {
        let mut editor = rustyline::Editor::new().context("cannot use the terminal")?;
        editor.set_auto_add_history(true);
        let history = history_file().filter(|_| keep_history);
        if let Some(path) = &history {
            // A first chat has none.
            let _ = editor.load_history(path);
        }
        Ok(Editor { editor, history })
    }
}

impl Lines for Editor {
    fn read(&mut self, prompt: &str) -> chat_cli::Result<Line> {
        match self.editor.readline(prompt) {
            Ok(line) => Ok(Line::Text(line)),
            Err(ReadlineError::Interrupted) => Ok(Line::Interrupted),
            Err(ReadlineError::Eof) => Ok(Line::End),
            Err(ReadlineError::Io(error)) => Err(error.into()),
            Err(error) => Err(std::io::Error::other(error).into()),
        }
    }
}

impl Drop for Editor {
    fn drop(&mut self) {
        if let Some(path) = &self.history
            && let Some(folder) = path.parent()
            && std::fs::create_dir_all(folder).is_ok()
        {
            // What cannot be remembered is forgotten.
            let _ = self.editor.save_history(path);
        }
    }
}

/// `chat-cli/history` in the user's folder for such things.
fn history_file() -> Option<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let folder = absolute("XDG_STATE_HOME")
        .or_else(|| absolute("LOCALAPPDATA"))
        .or_else(|| Some(absolute("HOME")?.join(".local/state")))?;
    Some(folder.join("chat-cli/history"))
}

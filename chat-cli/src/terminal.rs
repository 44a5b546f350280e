//! The terminal: [`Editor`] reads lines, [`Interrupt`] handles Ctrl-C.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::Context;
use chat_cli::{Line, Lines};
use command_line::state_folder;
use rustyline::config::Configurer;
use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;

/// Ctrl-C. During an answer, the first ends the answer; otherwise Ctrl-C ends the program.
#[derive(Clone)]
pub struct Interrupt {
    state: Arc<AtomicU8>,
}

const IDLE: u8 = 0;
const ANSWERING: u8 = 1;
const INTERRUPTED: u8 = 2;

impl Interrupt {
    /// Starts to listen.
    pub fn install() -> anyhow::Result<Interrupt> {
        let state = Arc::new(AtomicU8::new(IDLE));
        let shared = state.clone();
        command_line::on_ctrl_c(move || {
            shared.compare_exchange(ANSWERING, INTERRUPTED, Ordering::SeqCst, Ordering::SeqCst).is_ok()
        })
        .context("cannot listen for Ctrl-C")?;
        Ok(Interrupt { state })
    }

    /// Marks the beginning of an answer. It ends when the result is dropped.
    pub fn begin(&self) -> Answering<'_> {
        self.state.store(ANSWERING, Ordering::SeqCst);
        Answering { state: &self.state }
    }
}

/// An answer in progress.
pub struct Answering<'a> {
    state: &'a AtomicU8,
}

impl Answering<'_> {
    /// True if the user asked to end the answer.
    pub fn is_interrupted(&self) -> bool {
        self.state.load(Ordering::SeqCst) == INTERRUPTED
    }
}

impl Drop for Answering<'_> {
    fn drop(&mut self) {
        self.state.store(IDLE, Ordering::SeqCst);
    }
}

/// Reads lines, with editing and history on a terminal.
pub struct Editor {
    editor: rustyline::Editor<(), FileHistory>,
    history: Option<PathBuf>,
}

impl Editor {
    /// An editor. With `keep_history`, lines are stored for the next chat in a file that only the user may read.
    pub fn new(keep_history: bool) -> anyhow::Result<Editor> {
        let mut editor = rustyline::Editor::new().context("cannot use the terminal")?;
        editor.set_auto_add_history(true);
        let history = state_folder("chat-cli").map(|folder| folder.join("history")).filter(|_| keep_history);
        if let Some(path) = &history {
            // The first chat has no file yet.
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
            // A history that cannot be written is not worth an error.
            let _ = self.editor.save_history(path);
        }
    }
}

//! [`Outbox`]: the pieces of an answer between the step that made them and their reader.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{
    chunk::{Chunk, FinishReason},
    stats::Stats,
};
use crate::{Error, Result};

/// The pieces of an answer between the step that made them and their reader. Reading needs no lock of the batch, so a piece
/// does not wait for the step in progress.
#[derive(Clone, Default)]
pub(super) struct Outbox(Arc<Mutex<Content>>);

#[derive(Default)]
struct Content {
    chunks: VecDeque<Chunk>,
    error: Option<Error>,
    /// True after an error, also after it was read.
    has_failed: bool,
    finished: Option<FinishReason>,
    stats: Stats,
}

/// What a reader finds.
pub(super) enum Found {
    /// A piece. With the last one, why the answer ended.
    Chunk(Chunk, Option<FinishReason>),
    /// The answer has ended, and all pieces are read.
    End,
    /// Nothing yet.
    Nothing,
}

impl Outbox {
    /// Adds a piece, and the state of the answer after it.
    pub fn push(&self, chunk: Chunk, finished: Option<FinishReason>, stats: Stats) {
        let mut content = self.content();
        content.chunks.push_back(chunk);
        (content.finished, content.stats) = (finished, stats);
    }

    /// Ends the answer with an error.
    pub fn fail(&self, error: Error) {
        let mut content = self.content();
        (content.error, content.has_failed) = (Some(error), true);
    }

    /// True if the answer has ended.
    pub fn is_over(&self) -> bool {
        let content = self.content();
        content.finished.is_some() || content.has_failed
    }

    /// The next piece, and the token counts and times of the answer so far.
    pub fn take(&self) -> Result<(Found, Stats)> {
        let mut content = self.content();
        let found = match content.chunks.pop_front() {
            Some(chunk) => Found::Chunk(chunk, content.finished.filter(|_| content.chunks.is_empty())),
            None => match content.error.take() {
                Some(error) => return Err(error),
                None if content.finished.is_some() || content.has_failed => Found::End,
                None => Found::Nothing,
            },
        };
        Ok((found, content.stats))
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

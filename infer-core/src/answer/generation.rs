//! [`Generation`]: one answer, pulled piece by piece.

use std::sync::Arc;

use futures_util::stream::{self, Stream};

use super::{
    chunk::{Chunk, FinishReason},
    outbox::{Found, Outbox},
    shared::Shared,
    state::Answer,
    stats::Stats,
};
use crate::Result;

/// One answer, pulled piece by piece.
///
/// A pull that finds no piece runs the next step of all answers in progress on the model, or waits for the one that another
/// generation runs. Nothing runs between pulls. Dropping the generation ends the answer.
pub struct Generation {
    shared: Arc<Shared>,
    id: u64,
    outbox: Outbox,
    tokens: Vec<u32>,
    finished: Option<FinishReason>,
    stats: Stats,
    /// The state of an answer after an error.
    failed: Option<Answer>,
}

/// An answer whose device failed. Pass it to [`Engine::resume`](crate::Engine::resume).
pub struct Suspended(pub(super) Answer);

impl Generation {
    /// Starts or continues an answer at the next step.
    pub(super) fn start(shared: Arc<Shared>, mut answer: Answer) -> Generation {
        answer.finished = None;
        let (tokens, stats) = (answer.generated.clone(), answer.stats);
        let outbox = Outbox::default();
        let id = shared.add(answer, outbox.clone());
        Generation { id, shared, outbox, tokens, finished: None, stats, failed: None }
    }

    /// The next piece of text, or `None` if the answer has ended.
    ///
    /// A long prompt is prefilled in chunks. Each chunk but the last returns an empty piece, so that a caller can stop in
    /// between. If the future is dropped, no token is lost. After an error the answer has ended: see [`Generation::suspend`].
    pub async fn next(&mut self) -> Result<Option<Chunk>> {
        if self.finished.is_some() || self.failed.is_some() {
            return Ok(None);
        }
        let shared = self.shared.clone();
        loop {
            // Before the look into the outbox, so that no release is missed.
            let released = shared.released();
            if let Some(found) = self.find()? {
                return Ok(found);
            }
            let Some(mut batch) = shared.try_lock() else {
                released.await;
                continue;
            };
            // Another generation's step may have brought a piece since.
            if let Some(found) = self.find()? {
                return Ok(found);
            }
            if let Err(error) = batch.step().await {
                self.failed = batch.remove(self.id);
                return Err(error);
            }
        }
    }

    /// Looks into the outbox. `None`: nothing yet.
    fn find(&mut self) -> Result<Option<Option<Chunk>>> {
        let (found, stats) = self.outbox.take()?;
        self.stats = stats;
        Ok(match found {
            Found::Chunk(chunk, finished) => {
                self.tokens.extend(&chunk.tokens);
                self.finished = finished;
                Some(Some(chunk))
            }
            Found::End => Some(None),
            Found::Nothing => None,
        })
    }

    /// The pieces as a stream, which ends after the first error.
    pub fn into_stream(self) -> impl Stream<Item = Result<Chunk>> {
        stream::unfold(self, |mut generation| async move {
            generation.next().await.transpose().map(|chunk| (chunk, generation))
        })
    }

    /// Suspends the answer after an error. Resuming gives the same tokens, with the same random numbers.
    ///
    /// Panics without an error before.
    pub fn suspend(mut self) -> Suspended {
        Suspended(self.failed.take().expect("suspend: an answer whose device failed"))
    }

    /// Why the answer ended. `None` while it has not.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.finished
    }

    /// The tokens of the answer so far.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Token counts and times so far.
    pub fn stats(&self) -> Stats {
        self.stats
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.shared.cancel(self.id);
    }
}

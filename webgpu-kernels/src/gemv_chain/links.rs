//! [`Links`]: the memory through which the stages of a chain pass values to one another.

use super::{ChainShape, MOST_SPLITS};
use crate::{
    Result,
    gpu::{Buffer, Recorder},
};

/// A word whose value is not there yet: a NaN that arithmetic does not give.
pub(super) const PENDING: u32 = u32::MAX;
/// The word for a token that is chosen after the dispatches. The flag is next, so that one copy reads both.
const TOKEN: usize = 0;
/// The word that is not zero once a workgroup has stopped waiting. It stays so.
pub(super) const EXPIRED: usize = 1;
/// The word that counts workgroups, the first of those that a dispatch makes PENDING in the other set.
pub(super) const TICKET: usize = 32;
/// The first value.
pub(super) const VALUES: usize = 64;

/// Polls after which a workgroup stops waiting: a quarter of a second where one takes a microsecond. A whole layer takes milliseconds on
/// the slowest devices, and Windows resets a device that is busy for two seconds.
const MOST_POLLS: u32 = 1 << 18;
/// Polls after which a workgroup checks whether another has stopped waiting.
pub(super) const POLLS_TO_CHECK: u32 = 256;

/// The memory through which the stages of a chain pass values to one another, in two sets that alternate: see the shader. For
/// dispatches one after the other.
pub struct Links {
    sets: [Buffer<u32>; 2],
    turn: usize,
    /// Words from TICKET on that the last dispatch changed.
    used: usize,
    most_polls: u32,
    /// [`Recorder::forgotten`] when they were made: a dispatch that was forgotten does not reset the other set.
    forgotten: u64,
}

/// The links of a dispatch: its own set, and the one that it resets for the next dispatch.
pub(super) struct Turn<'a> {
    pub links: &'a Buffer<u32>,
    pub stale: &'a Buffer<u32>,
    /// Words of `stale` that may not be PENDING, from TICKET on.
    pub stale_words: usize,
    pub most_polls: u32,
}

impl Links {
    /// With room for chains of a shape. Errors: out of memory.
    pub fn new(recorder: &Recorder, shape: &ChainShape) -> Result<Links> {
        let len = words(shape.link_values(MOST_SPLITS));
        let sets = match recorder.hollow(len) {
            Some(hollow) => [hollow.clone(), hollow],
            None => {
                let words = fresh(len);
                let set = || recorder.with_room(|gpu| gpu.upload(&words));
                [set()?, set()?]
            }
        };
        Ok(Links { sets, turn: 0, used: 0, most_polls: MOST_POLLS, forgotten: recorder.forgotten() })
    }

    /// The same, with a bound on polls, to test what happens when a workgroup stops waiting. With 0 every workgroup does.
    pub fn with_most_polls(self, most_polls: u32) -> Links {
        Links { most_polls, ..self }
    }

    /// One word, not zero after the dispatches so far if a workgroup of one of them stopped waiting: their results are wrong.
    pub fn expired(&self) -> Buffer<u32> {
        self.sets[self.turn].element(EXPIRED)
    }

    /// One word, for a token that is chosen from the results of the dispatches so far. It lies before [`Links::expired`], so that
    /// reading both takes one copy. Valid until the next token is chosen.
    pub fn token(&self) -> Buffer<u32> {
        self.sets[self.turn].slice(TOKEN, 1)
    }

    /// True if the links have room for a shape, and the recorder ran all dispatches that reset them.
    pub fn are_ready(&self, recorder: &Recorder, shape: &ChainShape) -> bool {
        self.sets[0].len() >= words(shape.link_values(MOST_SPLITS)) && self.forgotten == recorder.forgotten()
    }

    /// Those for the next dispatch, which publishes so many values.
    pub(super) fn next(&mut self, values: usize) -> Turn<'_> {
        self.turn ^= 1;
        let stale_words = std::mem::replace(&mut self.used, words(values) - TICKET);
        let [links, stale] = [self.turn, self.turn ^ 1].map(|set| &self.sets[set]);
        Turn { links, stale, stale_words, most_polls: self.most_polls }
    }
}

impl Turn<'_> {
    /// The turn of a case, which alternates its sets itself. The dispatch resets the first `words` of `stale`, flag aside.
    pub(super) fn of<'a>([links, stale]: [&'a Buffer<u32>; 2], words: usize) -> Turn<'a> {
        Turn { links, stale, stale_words: words - TICKET, most_polls: MOST_POLLS }
    }
}

/// Words of a set with so many values.
pub(super) fn words(values: usize) -> usize {
    VALUES + values
}

/// A set of so many words before its first dispatch.
pub(super) fn fresh(words: usize) -> Vec<u32> {
    let mut fresh = vec![PENDING; words];
    fresh[..TICKET].fill(0);
    fresh
}

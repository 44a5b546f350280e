//! [`Links`]: the memory through which the stages of a chain pass values to one another. See links.wgsl.

use super::{
    ChainShape, MOST_SPLITS,
    words::{EXPIRED, PENDING, TICKET, TOKEN, VALUES},
};
use crate::{
    Result,
    gpu::{Buffer, Recorder},
};

/// Polls after which a workgroup stops waiting: a quarter of a second if a poll takes a microsecond. A whole layer takes milliseconds on the
/// slowest devices, and Windows resets a device that is busy for two seconds.
const MOST_POLLS: u32 = 1 << 18;

/// The memory through which the stages of a chain pass values to one another: two sets, which alternate from dispatch to dispatch. Only one
/// chain may run at a time.
pub struct Links {
    sets: [Buffer<u32>; 2],
    turn: usize,
    /// Number of words from TICKET on that the last dispatch wrote.
    used: usize,
    most_polls: u32,
    /// [`Recorder::forgotten`] at creation. A forgotten dispatch does not reset the other set.
    forgotten: u64,
}

/// The links of a dispatch: its own set, and the set that it resets for the next dispatch.
pub(super) struct LinkSets<'a> {
    pub links: &'a Buffer<u32>,
    pub stale: &'a Buffer<u32>,
    /// Number of words of `stale` to reset, from TICKET on.
    pub stale_words: usize,
    pub most_polls: u32,
}

impl Links {
    /// Links with room for chains of a shape. Errors: out of memory.
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

    /// Sets the bound on polls, for tests. With 0 every workgroup stops waiting at once.
    pub fn with_most_polls(self, most_polls: u32) -> Links {
        Links { most_polls, ..self }
    }

    /// One word. It is nonzero after the dispatches so far if one of their workgroups stopped waiting. Their results are then wrong.
    pub fn expired(&self) -> Buffer<u32> {
        self.sets[self.turn].element(EXPIRED)
    }

    /// One word for a token that is chosen from the results of the dispatches so far. It lies before [`Links::expired`], so that one copy
    /// reads both. The next token may overwrite it.
    pub fn token(&self) -> Buffer<u32> {
        self.sets[self.turn].slice(TOKEN, 1)
    }

    /// True if the links have room for a shape, and the recorder ran all dispatches that reset them.
    pub fn are_ready(&self, recorder: &Recorder, shape: &ChainShape) -> bool {
        self.sets[0].len() >= words(shape.link_values(MOST_SPLITS)) && self.forgotten == recorder.forgotten()
    }

    /// The sets for the next dispatch, which publishes `values` values.
    pub(super) fn next(&mut self, values: usize) -> LinkSets<'_> {
        self.turn ^= 1;
        let stale_words = std::mem::replace(&mut self.used, words(values) - TICKET);
        let [links, stale] = [self.turn, self.turn ^ 1].map(|set| &self.sets[set]);
        LinkSets { links, stale, stale_words, most_polls: self.most_polls }
    }
}

impl LinkSets<'_> {
    /// The sets of a case, which alternates them itself. The dispatch resets the words of `stale` from TICKET up to `words`.
    pub(super) fn of<'a>([links, stale]: [&'a Buffer<u32>; 2], words: usize) -> LinkSets<'a> {
        LinkSets { links, stale, stale_words: words - TICKET, most_polls: MOST_POLLS }
    }
}

/// Words of a set with `values` values.
pub(super) fn words(values: usize) -> usize {
    VALUES + values
}

/// The initial content of a set of `words` words.
pub(super) fn fresh(words: usize) -> Vec<u32> {
    let mut fresh = vec![PENDING; words];
    fresh[..TICKET].fill(0);
    fresh
}

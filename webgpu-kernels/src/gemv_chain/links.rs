//! [`Links`]: what the stages of a chain leave for one another.

use super::{ChainShape, MOST_SPLITS};
use crate::{
    Result,
    gpu::{Buffer, Recorder},
};

/// What a word is that was not left yet: a number that is none of those that arithmetic gives.
pub(super) const MISSING: u32 = u32::MAX;

/// What stages leave for one another on a device, in two sets that take turns: see the shader. For chains one after the other.
pub struct Links {
    sets: [Buffer<u32>; 2],
    turn: usize,
    /// Words that the last dispatch left.
    used: usize,
    /// [`Recorder::forgotten`] when they were made: what was forgotten does not make its set ready.
    forgotten: u64,
}

/// The links of a dispatch: its own, and those that it makes ready for the one after.
pub(super) struct Turn<'a> {
    pub links: &'a Buffer<u32>,
    pub stale: &'a Buffer<u32>,
    /// Words of `stale` that are not MISSING, the first ones.
    pub stale_words: usize,
}

impl Links {
    /// With room for chains of a shape. Errors: out of memory.
    pub fn new(recorder: &Recorder, shape: &ChainShape) -> Result<Links> {
        let most = shape.link_words(MOST_SPLITS);
        let sets = match recorder.hollow(most) {
            Some(hollow) => [hollow.clone(), hollow],
            None => {
                let words = vec![MISSING; most];
                let set = || recorder.with_room(|gpu| gpu.upload(&words));
                [set()?, set()?]
            }
        };
        Ok(Links { sets, turn: 0, used: 0, forgotten: recorder.forgotten() })
    }

    /// Whether they have room for a shape, and are as the next dispatch expects them.
    pub fn suit(&self, recorder: &Recorder, shape: &ChainShape) -> bool {
        self.sets[0].len() >= shape.link_words(MOST_SPLITS) && self.forgotten == recorder.forgotten()
    }

    /// Those for the next dispatch, which leaves so many words.
    pub(super) fn next(&mut self, words: usize) -> Turn<'_> {
        self.turn ^= 1;
        let stale_words = std::mem::replace(&mut self.used, words);
        Turn { links: &self.sets[self.turn], stale: &self.sets[self.turn ^ 1], stale_words }
    }
}

//! [`Tiles`]: attention of many rows of one sequence.

use super::{AttentionShape, Buffers, TILE_KERNEL, TILE_TUNABLE, TileParams};
use crate::{
    KvDtype, Variant,
    gpu::{Caps, Gpu, Recorder},
    kernel::product,
    kv::DeviceSpan,
    tuning::{AttentionTileChoice, Problem},
};

/// Attention of many rows of one sequence.
#[derive(Clone, Copy)]
pub(super) struct Tiles {
    pub shape: AttentionShape,
    pub span: DeviceSpan,
}

/// Classes of row counts for the choice of slots: each has the rows up to it, the last one also more.
const TILE_CLASSES: [usize; 4] = [16, 64, 128, 512];
/// Slots (a row and a head) of a lane of the tile kernel, the preferred number first. Registers bound them.
const TILE_SLOTS: [usize; 3] = [8, 4, 2];
/// Lanes of a workgroup with slots of their own.
const SLOT_LANES: usize = 8;
/// Widest head with eight slots per lane.
const MANY_SLOTS_DIM: usize = 128;
/// Workgroups of the tile kernel that keep a large device busy.
const ENOUGH_TILES: usize = 64;

impl Tiles {
    pub fn record(&self, recorder: &mut Recorder, buffers: Buffers<'_>) {
        let Tiles { shape, span } = *self;
        let work = [4, shape.seen_at(span.past_len + span.rows - 1), shape.heads, shape.head_dim];
        for range in recorder.row_ranges(span.rows, product(&work), 1) {
            let part = Tiles { shape, span: span.part(range) };
            let last = part.span.past_len + part.span.rows - 1;
            recorder.expect_work(&[4, part.span.rows, shape.seen_at(last), shape.heads, shape.head_dim]);
            let slots = part.slots(recorder.gpu());
            part.record_once(recorder, buffers, slots);
        }
    }

    pub fn record_once(&self, recorder: &mut Recorder, buffers: Buffers<'_>, slots: usize) {
        let Tiles { shape, span } = self;
        let Buffers { q, pool, rows, y } = buffers;
        let groups = tile_groups(shape, span.rows, slots);
        let params = TileParams {
            rows: span.rows as u32,
            first_row: span.first_row as u32,
            kv_heads: shape.kv_heads as u32,
            past_len: span.past_len as u32,
            pages: span.pages as u32,
            groups: groups as u32,
            window: shape.window_words(),
            scale: shape.scale,
            soft_cap: shape.soft_cap.unwrap_or_default(),
        };
        recorder.expect_bytes(pool.bytes_of(shape.seen_by(span)));
        let buffers = [q.into(), (&pool.kv).into(), (&rows.words).into(), y.into()];
        recorder.dispatch(&TILE_KERNEL, &tile_variant(shape, pool.dtype, slots), &params, &buffers, groups);
    }

    /// The chosen slots of a lane.
    fn slots(&self, gpu: &Gpu) -> usize {
        let AttentionShape { heads, kv_heads, head_dim, .. } = self.shape;
        let [.., last] = TILE_CLASSES;
        let class = TILE_CLASSES.into_iter().find(|most| self.span.rows <= *most).unwrap_or(last);
        let problem = Problem::new(&TILE_TUNABLE, None, [heads, kv_heads, head_dim, class]);
        gpu.choice(problem).get::<AttentionTileChoice>().slots as usize
    }
}

pub(super) fn tile_variant(shape: &AttentionShape, dtype: KvDtype, slots: usize) -> Variant {
    shape
        .variant(dtype)
        .flag_if("WINDOW", shape.window.is_some())
        .constant_is("CHUNKS", shape.head_dim.div_ceil(64) as u32)
        .constant_is("SET", slots.min(4) as u32)
        .constant_is("SETS", slots.div_ceil(4) as u32)
}

/// Workgroups of the tile kernel.
fn tile_groups(shape: &AttentionShape, rows: usize, slots: usize) -> usize {
    (rows * shape.group()).div_ceil(SLOT_LANES * slots) * shape.kv_heads
}

/// Slots without autotuning: fewer if there would be too few workgroups for a large device.
pub(super) fn default_slots(caps: &Caps, shape: &AttentionShape, rows: usize) -> usize {
    let enough = |slots: &usize| tile_groups(shape, rows, *slots) >= ENOUGH_TILES;
    let mut choices = tile_choices(caps, shape.head_dim);
    let least = choices.clone().next_back().expect("the fewest slots fit everywhere");
    choices.find(enough).unwrap_or(least)
}

/// Possible slots of a lane of the tile kernel. Two are only for devices with a known number of registers.
pub(super) fn tile_choices(caps: &Caps, head_dim: usize) -> impl DoubleEndedIterator<Item = usize> + Clone {
    let registers = caps.registers;
    TILE_SLOTS.into_iter().filter(move |&slots| {
        let fits = registers.is_none_or(|registers| tile_registers(slots, head_dim) <= registers || slots == 2);
        let is_wanted = slots > 2 || registers.is_some();
        fits && is_wanted && (slots <= 4 || head_dim <= MANY_SLOTS_DIM)
    })
}

/// Estimated registers of a lane of the tile kernel: sums, scores and limits of each slot, and one load. The factor is for addresses and
/// prefetched loads; it fits the output of Mesa's compilers.
fn tile_registers(slots: usize, head_dim: usize) -> u32 {
    let values = slots * (4 * head_dim.div_ceil(64) + 8) + 16;
    (values * 9 / 5) as u32
}

//! Ids of tokens for a batch whose tokens are partly known to the host, and partly chosen on the device by earlier steps:
//! `y[i] = sources[i]`, or `chosen[row]` if `sources[i]` is `CHOSEN | row`. The ids stay on the device, for [`crate::embedding`].

mod reference;

use crate::{
    Case, CaseSet, Kernel, Variant,
    cases::Random,
    gpu::{Buffer, Caps, Recorder},
    kernel::{Access, CaseBuffer, Params, Purpose, Usage, params},
};

pub use reference::gather_tokens;

/// The bit of a source that is a row of the chosen tokens. Without it a source is an id.
pub const CHOSEN: u32 = 1 << 31;

/// `y[i] = sources[i]`, or `chosen[row]` if `sources[i]` is `CHOSEN | row`.
pub struct GatherTokens {
    /// Number of tokens.
    pub count: usize,
}

params! { struct GatherTokensParams { count: u32, chosen_count: u32 } }

const WORKGROUP: usize = 64;

/// The kernel's record.
pub static KERNEL: Kernel = Kernel {
    name: "gather_tokens",
    wgsl: include_str!("gather_tokens.wgsl"),
    bindings: &[Access::Read, Access::Read, Access::ReadWrite],
    params: GatherTokensParams::LAYOUT,
    cases,
    usage: Usage::Answer,
    ..Kernel::DEFAULTS
};

impl GatherTokens {
    /// `sources`: `[count]`. `chosen`: any number of ids; a row beyond the last is the last one. `y`: `[count]`, neither of the others.
    pub fn record(&self, recorder: &mut Recorder, sources: &Buffer<u32>, chosen: &Buffer<u32>, y: &Buffer<u32>) {
        let params = GatherTokensParams { count: self.count as u32, chosen_count: chosen.len() as u32 };
        let buffers = [sources.into(), chosen.into(), y.into()];
        recorder.expect_bytes(12 * self.count as u64);
        recorder.dispatch(&KERNEL, &variant(), &params, &buffers, self.count.div_ceil(WORKGROUP));
    }
}

fn variant() -> Variant {
    Variant::new().constant_is("WORKGROUP", WORKGROUP as u32).constant_is("CHOSEN", CHOSEN)
}

fn cases(_: &Caps, set: CaseSet) -> Vec<Case> {
    // Tokens, and ids that were chosen.
    let shapes: &[(usize, usize)] = match set {
        CaseSet::Test => &[(1, 1), (5, 3), (64, 64), (300, 8), (129, 1000)],
        CaseSet::Bench => &[(64, 64)],
    };
    let case = |&(count, chosen_count): &(usize, usize)| Case {
        label: format!("{count} of {chosen_count} or the host"),
        variant: variant(),
        flops: 0,
        bytes: 12 * count as u64,
        tolerance: 0.0,
        buffers: Box::new(move || {
            let mut random = Random::new(count as u64);
            // The first is the last row. The third is beyond it.
            let source = |i: usize| match i {
                0 => CHOSEN | (chosen_count - 1) as u32,
                2 => CHOSEN | (chosen_count + 7) as u32,
                _ if random.below(2) == 0 => CHOSEN | random.below(chosen_count) as u32,
                _ => random.below(1 << 24) as u32,
            };
            let sources = (0..count).map(source).collect();
            let mut random = Random::new(chosen_count as u64);
            let chosen = (0..chosen_count).map(|_| random.below(1 << 24) as u32).collect();
            let y = CaseBuffer { words: vec![u32::MAX; count], purpose: Purpose::U32 };
            vec![CaseBuffer::words(sources), CaseBuffer::words(chosen), y]
        }),
        record: Box::new(move |recorder, b| {
            GatherTokens { count }.record(recorder, &b[0], &b[1].slice(0, chosen_count), &b[2]);
        }),
        reference: Box::new(move |b| {
            let mut y = vec![0; count];
            gather_tokens(&b[0].words, &b[1].words, &mut y);
            // Ids are exact in f32.
            vec![y.into_iter().map(|id| id as f32).collect()]
        }),
    };
    shapes.iter().map(case).collect()
}

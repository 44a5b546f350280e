//! Compares chains at a model's full size with the separate kernels of the same device. They have more workgroups than the device runs at a
//! time, so some start only when others end. The references of [`super::cases`] are too slow for this size.

use super::{ChainChoice, ChainShape, cases, choice::chains};
use crate::{
    Gpu, Result,
    case_check::{check_against, outputs_of},
    gpu::Caps,
    selftest::Line,
};

/// Numbers of earlier tokens: none, around the most keys of a single range, and a long conversation.
const DEPTHS: [usize; 5] = [0, 255, 256, 257, 4095];
/// Consecutive dispatches, as in decoding: each uses links that the one before reset.
const ROUNDS: usize = 8;

/// The shapes of a model's chains: the first layer's beginning, a layer's end with the next one's beginning, the last layer's end.
fn shapes_of(whole: ChainShape) -> [ChainShape; 3] {
    [ChainShape { end: None, ..whole }, whole, ChainShape { heads: None, ..whole }]
}

/// Checks chains of a shape with several choices. `done` gets the number of finished cases and of all. Errors: errors of the device.
pub async fn check_full(gpu: &Gpu, shape: &ChainShape, mut done: impl FnMut(usize, usize)) -> Result<Vec<Line>> {
    let mut work: Vec<(ChainShape, usize, Vec<ChainChoice>)> = Vec::new();
    for shape in shapes_of(*shape) {
        let depths = if shape.heads.is_some() { &DEPTHS[..] } else { &DEPTHS[..1] };
        work.extend(depths.iter().map(|&depth| (shape, depth, choices(gpu, &shape))));
    }
    let total = work.iter().map(|(_, _, choices)| choices.len()).sum();
    let mut lines = Vec::new();
    for (shape, depth, choices) in work.into_iter().filter(|(_, _, choices)| !choices.is_empty()) {
        let apart = cases::case_after(gpu.caps(), &shape, depth, None);
        let expected = outputs_of(gpu, &apart, ROUNDS).await?;
        for choice in choices {
            let case = cases::case_after(gpu.caps(), &shape, depth, Some(choice));
            let outcome = check_against(gpu, &case, &expected, ROUNDS).await?;
            lines.push(Line { kernel: shape.kernel().name, variant: case.variant, label: case.label, outcome });
            done(lines.len(), total);
        }
    }
    Ok(lines)
}

/// The device's choice, and the choices with the most and the fewest workgroups.
fn choices(gpu: &Gpu, shape: &ChainShape) -> Vec<ChainChoice> {
    let caps: &Caps = gpu.caps();
    let all = chains(caps, shape);
    let mut choices: Vec<ChainChoice> = shape.choice(gpu).into_iter().collect();
    choices.extend(all.iter().copied().max_by_key(|choice| choice.groups));
    choices.extend(all.iter().copied().min_by_key(|choice| choice.groups));
    let mut seen = std::collections::HashSet::new();
    choices.retain(|choice| seen.insert(*choice));
    choices
}

#[cfg(all(test, not(target_arch = "wasm32")))]
mod tests {
    use super::*;
    use crate::{
        gemv_chain::{EndShape, Heads},
        gpu::{OpenOptions, block_on, for_test},
    };

    /// The shape of SmolLM2 135M. A real GPU runs all stages at once, a software device one after the other.
    #[test]
    fn a_small_model_at_full_size_equals_separate_kernels() {
        let Some(gpu) = for_test(OpenOptions::PROFILES[1].1) else { return };
        let shape = ChainShape {
            hidden: 576,
            end: Some(EndShape { attended: 576, inner: 1536 }),
            heads: Some(Heads { heads: 9, kv_heads: 3, head_dim: 64 }),
        };
        let lines = block_on(check_full(&gpu, &shape, |_, _| {})).unwrap();
        let wrong: Vec<_> = lines.iter().filter(|line| line.outcome.is_err()).map(|line| &line.outcome).collect();
        assert!(wrong.is_empty(), "{wrong:?}");
        assert_eq!(lines.is_empty(), chains(gpu.caps(), &shape).is_empty());
    }
}

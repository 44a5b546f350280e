//! [`TUNABLE`]: the chain as a problem of autotuning, and the choice for a [`ChainShape`] on a device.

use super::{
    cases,
    choice::{ChainShape, EndShape, FORMAT, Heads, chains},
};
use crate::{
    Case,
    gpu::{Caps, Gpu},
    tuning::{ChainChoice, Choice, GemvChainChoice, Problem, Trial, Tunable},
};

/// The tunable of all three kernels.
pub static TUNABLE: Tunable = Tunable {
    name: "gemv_chain",
    kernel: |problem| ChainShape::of(problem).kernel(),
    extents: &["hidden", "inner", "heads", "kv_heads", "head_dim"],
    candidates,
    trial,
};

impl ChainShape {
    /// The choice on a device. `None`: separate dispatches.
    pub fn choice(&self, gpu: &Gpu) -> Option<ChainChoice> {
        if !gpu.caps().forward_progress || gpu.is_off(self.kernel().name) {
            return None;
        }
        gpu.choice(self.problem()).get::<GemvChainChoice>().chain
    }

    fn problem(&self) -> Problem {
        let inner = self.end.map_or(0, |end| end.inner);
        let [heads, kv_heads, head_dim] = match (self.heads, self.end) {
            (Some(Heads { heads, kv_heads, head_dim }), _) => [heads, kv_heads, head_dim],
            (None, Some(end)) => [1, 0, end.attended],
            (None, None) => [0; 3],
        };
        Problem::new(&TUNABLE, Some(FORMAT), [self.hidden, inner, heads, kv_heads, head_dim])
    }

    fn of(problem: &Problem) -> ChainShape {
        let [hidden, inner, heads, kv_heads, head_dim] = problem.sizes();
        ChainShape {
            hidden,
            end: (inner > 0).then_some(EndShape { attended: heads * head_dim, inner }),
            heads: (kv_heads > 0).then_some(Heads { heads, kv_heads, head_dim }),
        }
    }
}

fn candidates(caps: &Caps, problem: &Problem) -> Vec<Choice> {
    let chains = chains(caps, &ChainShape::of(problem)).into_iter().map(Some).filter(|_| caps.forward_progress);
    std::iter::once(None).chain(chains).map(|chain| GemvChainChoice { chain }.into()).collect()
}

fn trial(caps: &Caps, problem: &Problem, choice: Choice) -> Trial {
    let shape = ChainShape::of(problem);
    let GemvChainChoice { chain: choice } = choice.get();
    Trial {
        case: cases::case(caps, &shape, choice),
        lens: cases::lens(&shape),
        rotated: cases::matrix_buffers(&shape),
        checks: cases::checks(caps, &shape, choice),
    }
}

/// A case for each choice after `position` tokens, for timing. The case of separate dispatches has no choice.
pub fn choice_cases(caps: &Caps, shape: &ChainShape, position: usize) -> Vec<(Option<ChainChoice>, Case)> {
    let all = std::iter::once(None).chain(chains(caps, shape).into_iter().map(Some));
    all.map(|choice| (choice, cases::case_after(caps, shape, position, choice))).collect()
}

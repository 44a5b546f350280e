//! Algorithm numbers: which results of an interrupted process a newer program may go on with.
//!
//! Every step that turns inputs into kept results has a number. The numbers of a program's steps are part of its fingerprint
//! (`gptq-quant/src/run.rs`, `weight-convert/src/fingerprint.rs`), so that a run is never continued by a program that computes
//! something else.
//!
//! The rule: a change that gives another result for the same input raises the number of its step, in the same commit. That
//! includes other rounding, another order of a sum and other defaults inside a step. A change of speed alone raises nothing.

use serde_json::{Map, Value};

/// A step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Its name in fingerprints and messages.
    pub name: &'static str,
    /// How often its results have changed.
    pub number: u32,
}

const fn step(name: &'static str, number: u32) -> Step {
    Step { name, number }
}

/// The forward pass: `infer-core/src/model/`, `infer-core/src/ops/` and the kernels that it runs.
const FORWARD: Step = step("forward", 1);

/// The steps of `gptq-quant` up to the finished folder.
pub const QUANTIZE: &[Step] = &[
    // Windows of calibration text, and text that the model writes: calib-data, `gptq-quant/src/input/self_text.rs`.
    step("text", 1),
    FORWARD,
    // Sums over tokens: `gptq-quant/src/solve/hessian.rs`, `gptq-quant/src/calibrate/`, `webgpu-kernels/src/gram/`.
    step("hessian", 1),
    // Scales and codes: `gptq-quant/src/solve/`, `webgpu-kernels/src/gptq/`. 2: dead inputs are left out of the mean that damping is a share of.
    step("solve", 2),
    // Coordinate descent: `gptq-quant/src/solve/refine.rs`.
    step("refine", 1),
    // What is said of a matrix: `gptq-quant/src/report/matrix.rs`.
    step("report", 1),
    // The checkpoint's files: `gptq-quant/src/output/`, `model-format/src/gptq/`.
    step("files", 1),
];

/// The steps of measuring a quantized model.
pub const EVALUATE: &[Step] = &[
    FORWARD,
    // Windows of the text and their losses: `gptq-quant/src/report/evaluate.rs`.
    step("evaluate", 1),
];

/// The steps of `weight-convert` up to the shards and their index.
pub const CONVERT: &[Step] = &[
    // Round-to-nearest and packing: `model-format/src/quant/`, `weight-convert/src/encode.rs`.
    step("encode", 1),
    // From GPTQ's grid to a format's: `model-format/src/gptq/to_format.rs`.
    step("from_gptq", 1),
    // Which tensor goes where: `weight-convert/src/shards.rs`, `weight-convert/src/plan.rs`.
    step("shards", 1),
];

/// The numbers of some steps by name, as a fingerprint holds them.
pub fn numbers(steps: &[Step]) -> Value {
    Value::Object(steps.iter().map(|step| (step.name.to_owned(), step.number.into())).collect::<Map<_, _>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_of_a_program_has_a_name_of_its_own() {
        for steps in [QUANTIZE, EVALUATE, CONVERT] {
            let numbers = numbers(steps);
            assert_eq!(numbers.as_object().unwrap().len(), steps.len());
            assert!(steps.iter().all(|step| numbers[step.name] == step.number && step.number > 0));
        }
    }
}

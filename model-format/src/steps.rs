//! Algorithm numbers: whether a newer program may resume the results of an interrupted run.
//!
//! Each step that computes stored results has a number. The numbers of a program's steps are part of its fingerprint
//! (`gptq-quant/src/run.rs`, `weight-convert/src/fingerprint.rs`). A program with a different algorithm therefore never
//! resumes a run.
//!
//! The rule: a change that gives a different result for the same input raises the number of its step in the same
//! commit. This includes different rounding, a different order of a sum, and different defaults inside a step. A change
//! of speed alone raises no number.

use serde_json::{Map, Value};

/// A step of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Name in fingerprints and messages.
    pub name: &'static str,
    /// Algorithm number, from 1. Raised with each change of results.
    pub number: u32,
}

const fn step(name: &'static str, number: u32) -> Step {
    Step { name, number }
}

/// The forward pass: `infer-core/src/model/`, `infer-core/src/ops/` and their kernels.
const FORWARD: Step = step("forward", 1);

/// The steps of `gptq-quant` up to the finished folder.
pub const QUANTIZE: &[Step] = &[
    // Windows of calibration text, and self-generated text: calib-data, `gptq-quant/src/input/self_text.rs`.
    step("text", 1),
    FORWARD,
    // Sums over tokens: `gptq-quant/src/solve/hessian.rs`, `gptq-quant/src/calibrate/`, `webgpu-kernels/src/gram/`.
    step("hessian", 1),
    // Scales and codes: `gptq-quant/src/solve/`, `webgpu-kernels/src/gptq/`. 2: the mean diagonal, of which damping is
    // a share, excludes dead inputs.
    step("solve", 2),
    // Coordinate descent: `gptq-quant/src/solve/refine.rs`.
    step("refine", 1),
    // The report's figures of a matrix: `gptq-quant/src/report/matrix.rs`.
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
    // Conversion from GPTQ's grid to a format's grid: `model-format/src/gptq/to_format.rs`.
    step("from_gptq", 1),
    // Assignment of tensors to shards: `weight-convert/src/shards.rs`, `weight-convert/src/plan.rs`.
    step("shards", 1),
];

/// A JSON object with the number of each step by name, for a fingerprint.
pub fn numbers(steps: &[Step]) -> Value {
    Value::Object(steps.iter().map(|step| (step.name.to_owned(), step.number.into())).collect::<Map<_, _>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn step_names_are_unique_in_a_program() {
        for steps in [QUANTIZE, EVALUATE, CONVERT] {
            let numbers = numbers(steps);
            assert_eq!(numbers.as_object().unwrap().len(), steps.len());
            assert!(steps.iter().all(|step| numbers[step.name] == step.number && step.number > 0));
        }
    }
}

//! `verify` on shards that were changed by hand, by less than one step and by one step.

mod common;

use common::{format, open, spoil};
use half::f16;
use model_format::{Checkpoint, HostTensor, SafetensorsCheckpoint, checkpoint::write_safetensors};
use weight_convert::{ParamCheck, WeightOptions, convert_weight, verify};

const MODULE: &str = "model.layers.0.mlp.down_proj";

/// The tiny Llama with known weights in one matrix: the largest of every group is 7/8, so a step is 1/8, and every second weight is
/// halfway between two values.
fn checkpoint() -> tempfile::TempDir {
    let folder = common::tiny_llama();
    let source = SafetensorsCheckpoint::open(folder.path()).unwrap();
    let tensors: Vec<(String, HostTensor<'static>)> = source
        .tensors()
        .iter()
        .map(|info| {
            let tensor = source.tensor(&info.name).unwrap();
            let mut bytes = tensor.bytes.into_owned();
            if info.name == format!("{MODULE}.weight") {
                for (i, word) in bytes.chunks_exact_mut(2).enumerate() {
                    let value = match i % 32 {
                        0 => 0.875,
                        i if i % 2 == 0 => 0.0625 + 0.125 * (i as f32 / 8.0).floor(),
                        i => 0.125 * ((i % 7) as f32 - 3.0) + 0.03,
                    };
                    word.copy_from_slice(&half::bf16::from_f32(value).to_le_bytes());
                }
            }
            (info.name.clone(), HostTensor { dtype: tensor.dtype, shape: tensor.shape, bytes: bytes.into() })
        })
        .collect();
    write_safetensors(&folder.path().join("model.safetensors"), tensors).unwrap();
    folder
}

/// The check of that matrix after `change` of its codes or scales.
fn verdict(tensor: &str, change: impl FnOnce(&mut [u8])) -> ParamCheck {
    let source = checkpoint();
    let source = SafetensorsCheckpoint::open(source.path()).unwrap();
    let out = tempfile::tempdir().unwrap();
    convert_weight(&source, format("q4f16_1"), &WeightOptions::default(), out.path(), &mut ()).unwrap();
    spoil(out.path(), &format!("{MODULE}.{tensor}"), change);
    let verification = verify(&source, out.path(), None, &mut ()).unwrap();
    let mut others = verification.params.iter().filter(|check| check.name != format!("{MODULE}.weight"));
    assert!(others.all(ParamCheck::is_equal));
    verification.params.into_iter().find(|check| check.name == format!("{MODULE}.weight")).unwrap()
}

/// Adds `difference` to the codes of some weights. A byte has two codes.
fn add(bytes: &mut [u8], weights: impl Iterator<Item = usize>, difference: i8) {
    for weight in weights {
        let (byte, shift) = (&mut bytes[weight / 2], 4 * (weight % 2));
        let code = ((*byte >> shift & 15) as i8 + difference) as u8;
        assert!(code < 16);
        *byte = *byte & !(15 << shift) | code << shift;
    }
}

/// Weights halfway between two values, whose code was rounded to even: weight 32 i + 2 is 1/16, and 7.5 becomes 8.
fn ties(count: usize) -> impl Iterator<Item = usize> {
    (0..count).map(|i| 32 * i + 2)
}

#[test]
fn a_few_ties_rounded_the_other_way_pass() {
    let check = verdict("q_weight", |bytes| add(bytes, ties(1), -1));
    assert_eq!((check.different, check.wrong, check.lossless), (1, 0, false), "{check:?}");
    assert!(check.passes() && !check.is_equal());
    let most = check.values / 100;
    assert!(verdict("q_weight", |bytes| add(bytes, ties(most), -1)).passes());
    let check = verdict("q_weight", |bytes| add(bytes, ties(most + 1), -1));
    assert!(check.wrong == 0 && !check.passes(), "{check:?}");
}

#[test]
fn one_wrong_code_or_scale_fails() {
    // One weight has the second-nearest value: less than three times the rounding error.
    for difference in [-1, 1] {
        let check = verdict("q_weight", |bytes| add(bytes, [33].into_iter(), difference));
        assert_eq!((check.different, check.wrong), (1, 1), "{check:?}");
        assert!(check.max_error < 3.0 * check.expected_error && !check.passes(), "{check:?}");
    }
    // A tie that was already rounded up, rounded up again.
    assert!(!verdict("q_weight", |bytes| add(bytes, ties(1), 1)).passes());
    // The scale of one group, with less than a hundredth of the values.
    let check = verdict("q_scale", |bytes| {
        let scale = f16::from_le_bytes([bytes[0], bytes[1]]);
        assert_eq!(scale, f16::from_f32(0.125));
        bytes[..2].copy_from_slice(&f16::from_f32(0.15).to_le_bytes());
    });
    assert!(check.different <= check.values / 100 && check.wrong > 0 && !check.passes(), "{check:?}");
}

#[test]
fn numbers_without_codes_must_be_equal() {
    let out = tempfile::tempdir().unwrap();
    let source = open("arch/llama/hf");
    convert_weight(&source, format("q4f16_1"), &WeightOptions::default(), out.path(), &mut ()).unwrap();
    spoil(out.path(), "model.norm.weight", |bytes| bytes[0] ^= 1);
    let verification = verify(&source, out.path(), None, &mut ()).unwrap();
    let failures: Vec<_> = verification.failures().map(|check| (check.name.as_str(), check.wrong)).collect();
    assert_eq!(failures, [("model.norm.weight", 1)]);
}

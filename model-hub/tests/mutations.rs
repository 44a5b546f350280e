//! Corrupted GGUF files must not make the reader panic or allocate much memory.

#[path = "../../model-format/tests/common/mutation.rs"]
mod mutation;

use candle_core::{
    Device, Tensor,
    quantized::{GgmlDType, QTensor, gguf_file::Value, gguf_file::write},
};
use model_format::Checkpoint;
use model_hub::GgufCheckpoint;

#[global_allocator]
static COUNTING: mutation::Counting = mutation::Counting;

/// A valid model with one layer, a few thousand bytes long.
fn small() -> Vec<u8> {
    let list = |items: &[&str]| Value::Array(items.iter().map(|item| Value::String((*item).into())).collect());
    let entries = [
        ("general.architecture", Value::String("llama".into())),
        ("llama.block_count", Value::U32(1)),
        ("llama.context_length", Value::U32(64)),
        ("llama.embedding_length", Value::U32(32)),
        ("llama.feed_forward_length", Value::U32(32)),
        ("llama.attention.head_count", Value::U32(2)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
        ("tokenizer.ggml.model", Value::String("gpt2".into())),
        ("tokenizer.ggml.pre", Value::String("smollm".into())),
        ("tokenizer.ggml.tokens", list(&["a", "b", "ab", "<e>"])),
        ("tokenizer.ggml.token_type", Value::Array([1, 1, 1, 3].map(Value::I32).into())),
        ("tokenizer.ggml.merges", list(&["a b"])),
        ("tokenizer.ggml.eos_token_id", Value::U32(3)),
    ];
    let tensor = |rows: usize, dtype: GgmlDType| {
        QTensor::quantize(&Tensor::zeros((rows, 32), candle_core::DType::F32, &Device::Cpu).unwrap(), dtype).unwrap()
    };
    let (table, matrix) = (tensor(4, GgmlDType::Q8_0), tensor(32, GgmlDType::Q4_0));
    let tensors = [("token_embd.weight", &table), ("blk.0.attn_output.weight", &matrix)];
    let mut file = tempfile::tempfile().unwrap();
    let entries: Vec<_> = entries.iter().map(|(key, value)| (*key, value)).collect();
    write(&mut file, &entries, &tensors).unwrap();
    let mut bytes = Vec::new();
    std::io::Seek::rewind(&mut file).unwrap();
    std::io::Read::read_to_end(&mut file, &mut bytes).unwrap();
    bytes
}

#[test]
fn corrupted_gguf_files_do_not_panic() {
    let good = small();
    let folder = tempfile::tempdir().unwrap();
    let file_of = |thread| folder.path().join(format!("{thread}.gguf"));
    std::fs::write(file_of(0), &good).unwrap();
    assert!(!GgufCheckpoint::open(&file_of(0)).unwrap().tensors().is_empty());
    mutation::check_on_threads(&[good], |thread| {
        let path = file_of(thread);
        move |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            if let Ok(checkpoint) = GgufCheckpoint::open(&path) {
                for info in checkpoint.tensors() {
                    if let Ok(tensor) = checkpoint.tensor(&info.name) {
                        assert_eq!(tensor.bytes.len(), info.elements() * info.dtype.size());
                    }
                }
            }
        }
    });
}

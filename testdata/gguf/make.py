#!/usr/bin/env python3
"""Makes the GGUF files of this folder with llama.cpp's own Python package, and the expected results of reading them.

usage: make.py SHORT_TEXT OUT_DIR      (from the repository: make.py calib-data/src/short_text.txt testdata/gguf)
needs: pip install gguf==0.19.0 safetensors==0.8.0 sentencepiece==0.2.3 "transformers==4.57.6" protobuf

tiny.gguf          a Llama with all supported block types, q and k permuted as in convert_hf_to_gguf.py;
                   tiny.safetensors: its tensors by gguf.dequantize, permuted back, quantized ones rounded to f16.
sentencepiece.gguf the vocabulary of a SentencePiece model of SHORT_TEXT; sentencepiece.tokenizer.json: transformers'
                   conversion of the same model.
"""
import json
import os
import sys
import tempfile

import numpy as np
import gguf
from gguf import GGMLQuantizationType as T
from safetensors.numpy import save_file

HERE = os.path.dirname(os.path.abspath(__file__))
HIDDEN, INNER, HEADS, KV_HEADS, LAYERS, VOCAB, THETA = 64, 256, 4, 2, 2, 512, 500000.0
HEAD_DIM = HIDDEN // HEADS


def permute(w, heads):
    """As in convert_hf_to_gguf.py, LlamaModel.permute."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def unpermute(w, heads):
    return w.reshape(heads, w.shape[0] // heads // 2, 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def rope_divisors(factor, low=1.0, high=4.0, original=8192):
    """As in convert_hf_to_gguf.py, LlamaModel.generate_extra_tensors."""
    out = []
    for freq in 1.0 / (THETA ** (np.arange(0, HEAD_DIM, 2, dtype=np.float32) / HEAD_DIM)):
        wavelength = 2 * np.pi / freq
        if wavelength < original / high:
            out.append(1)
        elif wavelength > original / low:
            out.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            out.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(out, dtype=np.float32)


def blocks(rng, kind, rows, cols):
    """K-quants, which the package can read but not write: random codes with small finite scales."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    raw = rng.integers(0, 256, (rows * cols // block, size), dtype=np.uint8)
    scale = rng.uniform(1e-4, 2e-3, (raw.shape[0], 2)).astype(np.float16).view(np.uint8)
    # Positions of the f16 scales in ggml's block_q4_K (d and dmin first) and block_q6_K (d last).
    if kind == T.Q4_K:
        raw[:, :4] = scale
    else:
        raw[:, -2:] = scale[:, :2]
    return raw.reshape(rows, -1)


def common(writer, vocab):
    writer.add_context_length(131072)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(THETA)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocab)


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tiny(out):
    rng, writer, expected = np.random.default_rng(11), gguf.GGUFWriter(f"{out}/tiny.gguf", "llama"), {}
    common(writer, VOCAB)
    tokenizer = json.load(open(f"{HERE}/../tokenizer/tiny-bpe/tokenizer.json"))
    by_id = sorted(tokenizer["model"]["vocab"].items(), key=lambda item: item[1])
    special = {token["id"] for token in tokenizer["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([token for token, _ in by_id])
    writer.add_token_types([3 if i in special else 1 for i in range(VOCAB)])
    merges = tokenizer["model"]["merges"]
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_eot_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template("{% for m in messages %}{{ m.content }}<|eot|>{% endfor %}")

    def add(name, ours, rows, cols, kind, heads=None):
        if kind in (T.Q4_K, T.Q6_K):
            raw = blocks(rng, kind, rows, cols)
        else:
            w = rng.normal(0, 0.05, (rows, cols)).astype(np.float32)
            raw = gguf.quantize(permute(w, heads) if heads else w, kind)
        writer.add_tensor(name, raw, raw_dtype=kind)
        w = gguf.dequantize(raw, kind).reshape(rows, cols)
        w = unpermute(w, heads) if heads else w
        expected[ours] = w if kind == T.F32 else w.astype(np.float16)

    def norm(name, ours, exact):
        w = rng.normal(1, 0.1, HIDDEN).astype(np.float32)
        w = w.astype(np.float16).astype(np.float32) if exact else w
        writer.add_tensor(name, w)
        expected[ours] = w.astype(np.float16) if exact else w

    # The order of llama.cpp's files, which is not sorted by name.
    writer.add_tensor("rope_freqs.weight", rope_divisors(32.0))
    add("token_embd.weight", "model.embed_tokens.weight", VOCAB, HIDDEN, T.Q8_0)
    for i in range(LAYERS):
        at, ours = f"blk.{i}.", f"model.layers.{i}."
        norm(at + "attn_norm.weight", ours + "input_layernorm.weight", exact=i == 0)
        add(at + "ffn_down.weight", ours + "mlp.down_proj.weight", HIDDEN, INNER, [T.Q4_K, T.Q6_K][i])
        add(at + "ffn_gate.weight", ours + "mlp.gate_proj.weight", INNER, HIDDEN, [T.Q5_0, T.Q5_1][i])
        add(at + "ffn_up.weight", ours + "mlp.up_proj.weight", INNER, HIDDEN, [T.Q4_0, T.Q4_1][i])
        norm(at + "ffn_norm.weight", ours + "post_attention_layernorm.weight", exact=True)
        add(at + "attn_k.weight", ours + "self_attn.k_proj.weight", KV_HEADS * HEAD_DIM, HIDDEN, [T.Q8_0, T.F16][i], KV_HEADS)
        add(at + "attn_output.weight", ours + "self_attn.o_proj.weight", HIDDEN, HIDDEN, [T.F32, T.Q4_1][i])
        add(at + "attn_q.weight", ours + "self_attn.q_proj.weight", HIDDEN, HIDDEN, [T.Q4_1, T.F16][i], HEADS)
        add(at + "attn_v.weight", ours + "self_attn.v_proj.weight", KV_HEADS * HEAD_DIM, HIDDEN, [T.F16, T.Q4_0][i])
    norm("output_norm.weight", "model.norm.weight", exact=True)
    add("output.weight", "lm_head.weight", VOCAB, HIDDEN, T.Q4_0)
    finish(writer)
    expected = {name: np.ascontiguousarray(w) for name, w in expected.items()}
    save_file(expected, f"{out}/tiny.safetensors", metadata={"format": "pt"})


def sentencepiece(text, out):
    import sentencepiece as spm
    from transformers import LlamaTokenizerFast

    with tempfile.TemporaryDirectory() as folder:
        # As Meta trained Llama's tokenizer: BPE with byte fallback, no normalization except the leading space.
        spm.SentencePieceTrainer.train(
            input=text, model_prefix=f"{folder}/m", model_type="bpe", vocab_size=400, byte_fallback=True,
            normalization_rule_name="identity", remove_extra_whitespaces=False, user_defined_symbols=["<tool>"])
        model = spm.SentencePieceProcessor(model_file=f"{folder}/m.model")
        fast = LlamaTokenizerFast(f"{folder}/m.model", legacy=True, add_prefix_space=True, from_slow=True)
        fast.backend_tokenizer.save(f"{out}/sentencepiece.tokenizer.json", pretty=False)

    size = model.vocab_size()
    kind = lambda i: (6 if model.is_byte(i) else 2 if model.is_unknown(i) else 3 if model.is_control(i)
                      else 4 if model.id_to_piece(i) == "<tool>" else 1)
    writer = gguf.GGUFWriter(f"{out}/sentencepiece.gguf", "llama")
    common(writer, size)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([model.id_to_piece(i) for i in range(size)])
    writer.add_token_scores([model.get_score(i) for i in range(size)])
    writer.add_token_types([kind(i) for i in range(size)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    embedding = gguf.quantize(np.zeros((size, HIDDEN), dtype=np.float32), T.Q4_0)
    writer.add_tensor("token_embd.weight", embedding, raw_dtype=T.Q4_0)
    finish(writer)


if __name__ == "__main__":
    tiny(sys.argv[2])
    sentencepiece(sys.argv[1], sys.argv[2])

"""Writes a tiny Llama that needs BOS, texts in its language, and its losses and greedy text with and without BOS.

Run as: python make.py     (needs numpy 2.4 and safetensors 0.8; does not use the code of this repository)

The heads attend along one direction of the keys, and only BOS has this direction. With BOS in front, they attend to BOS, which
adds nothing. Without BOS, they attend to the whole text and add its values to the residual stream, which changes the
predicted words. Trained models use their first token as an attention sink in the same way (arXiv:2309.17453).
"""

import json
import os

import numpy as np
from safetensors.numpy import save_file

HERE = os.path.dirname(os.path.abspath(__file__))
HIDDEN, HEADS, HEAD_DIM, LAYERS, WORDS, EPS, THETA = 64, 2, 32, 2, 61, 1e-5, 1e6
UNK, BOS, END, FIRST_WORD = 0, 1, 2, 3
VOCAB = FIRST_WORD + WORDS
WINDOW = 64
rng = np.random.default_rng(17)
# The successor of each word.
order = rng.permutation(WORDS)
follows = np.empty(WORDS, int)
follows[order] = np.roll(order, -1)


def weights():
    """Residual stream: dimension 0 is equal for all tokens, dimension 1 marks BOS, and each word has one of the others."""
    embedding = np.zeros((VOCAB, HIDDEN))
    embedding[:, 0] = 1
    embedding[BOS, 1] = 8
    head = rng.normal(0, 0.02, (VOCAB, HIDDEN))
    for word in range(WORDS):
        embedding[FIRST_WORD + word, 2 + word] = 4
        head[FIRST_WORD + follows[word], 2 + word] += 0.8
    tensors = {"model.embed_tokens.weight": embedding, "lm_head.weight": head, "model.norm.weight": np.ones(HIDDEN)}
    # The pair of dimensions with the lowest RoPE frequency.
    slow = HEAD_DIM // 2 - 1
    for layer in range(LAYERS):
        q = rng.normal(0, 0.01, (HEADS * HEAD_DIM, HIDDEN))
        k = rng.normal(0, 0.01, (HEAD_DIM, HIDDEN))
        v = rng.normal(0, 0.15, (HEAD_DIM, HIDDEN))
        v[:, 0] += rng.normal(0, 0.7, HEAD_DIM)
        for h in range(HEADS):
            q[h * HEAD_DIM + slow, 0] = 3
        k[:, 1] = 0
        k[slow, :2] = [0, 3]
        # The value of BOS is zero: dimension 1 cancels the contribution of dimension 0.
        v[:, 1] = -v[:, 0] / 8
        name = f"model.layers.{layer}."
        tensors |= {
            name + "self_attn.q_proj.weight": q, name + "self_attn.k_proj.weight": k,
            name + "self_attn.v_proj.weight": v,
            name + "self_attn.o_proj.weight": rng.normal(0, 0.25, (HIDDEN, HEADS * HEAD_DIM)),
            name + "mlp.gate_proj.weight": rng.normal(0, 0.05, (HIDDEN, HIDDEN)),
            name + "mlp.up_proj.weight": rng.normal(0, 0.05, (HIDDEN, HIDDEN)),
            name + "mlp.down_proj.weight": rng.normal(0, 0.05, (HIDDEN, HIDDEN)),
            name + "input_layernorm.weight": np.ones(HIDDEN),
            name + "post_attention_layernorm.weight": np.ones(HIDDEN),
        }
    return {name: tensor.astype(np.float16) for name, tensor in tensors.items()}


def logits(tensors, ids):
    """The forward pass of Llama in f64, as in its paper and in transformers."""
    w = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    norm = lambda x, weight: x / np.sqrt((x * x).mean(-1, keepdims=True) + EPS) * weight
    n = len(ids)
    frequencies = THETA ** (-np.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    angles = np.arange(n)[:, None] * np.concatenate([frequencies, frequencies])
    half = HEAD_DIM // 2
    rotate = lambda x: x * np.cos(angles) + np.concatenate([-x[:, half:], x[:, :half]], 1) * np.sin(angles)
    mask = np.triu(np.full((n, n), -np.inf), 1)
    x = w["model.embed_tokens.weight"][ids]
    for layer in range(LAYERS):
        of = lambda name: w[f"model.layers.{layer}.{name}.weight"]
        y = norm(x, of("input_layernorm"))
        q, k, v = (y @ of(f"self_attn.{p}_proj").T for p in "qkv")
        k = rotate(k)
        heads = []
        for h in range(HEADS):
            scores = rotate(q[:, h * HEAD_DIM:][:, :HEAD_DIM]) @ k.T / np.sqrt(HEAD_DIM) + mask
            shares = np.exp(scores - scores.max(1, keepdims=True))
            heads.append(shares / shares.sum(1, keepdims=True) @ v)
        x = x + np.concatenate(heads, 1) @ of("self_attn.o_proj").T
        y = norm(x, of("post_attention_layernorm"))
        gate = y @ of("mlp.gate_proj").T
        x = x + (gate / (1 + np.exp(-gate)) * (y @ of("mlp.up_proj").T)) @ of("mlp.down_proj").T
    return norm(x, w["model.norm.weight"]) @ w["lm_head.weight"].T


def losses(tensors, ids):
    """The losses of all tokens after the first."""
    rows = logits(tensors, ids)[:-1]
    return np.log(np.exp(rows).sum(1)) - rows[np.arange(len(rows)), ids[1:]]


def text(count):
    """A sequence of successors. One word in ten is random."""
    words = [int(rng.integers(WORDS))]
    while len(words) < count:
        words.append(int(rng.integers(WORDS)) if rng.random() < 0.1 else int(follows[words[-1]]))
    return words


def greedy(tensors, ids, count):
    ids, gaps = list(ids), []
    for _ in range(count):
        best = np.sort(logits(tensors, ids)[-1])
        gaps.append(best[-1] - best[-2])
        ids.append(int(logits(tensors, ids)[-1].argmax()))
    return ids[-count:], min(gaps)


def write(name, content):
    with open(os.path.join(HERE, name), "w") as file:
        file.write(content if isinstance(content, str) else json.dumps(content, indent=1) + "\n")


def main():
    tensors = weights()
    save_file(tensors, os.path.join(HERE, "model.safetensors"), {"format": "pt"})
    write("config.json", {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": HIDDEN,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": 1, "head_dim": HEAD_DIM,
        "vocab_size": VOCAB, "max_position_embeddings": 512, "rms_norm_eps": EPS, "rope_theta": THETA,
        "hidden_act": "silu", "tie_word_embeddings": False, "torch_dtype": "float16", "bos_token_id": BOS,
        "eos_token_id": END})
    control = {UNK: "<unk>", BOS: "<|begin_of_text|>", END: "<|end_of_text|>"}
    added = [{"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
              "special": True} for i, token in control.items()]
    bos = {"SpecialToken": {"id": control[BOS], "type_id": 0}}
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    write("tokenizer.json", {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": {"type": "Sequence", "processors": [byte_level, {
            "type": "TemplateProcessing",
            "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [bos, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {control[BOS]: {"id": control[BOS], "ids": [BOS], "tokens": [control[BOS]]}}}]},
        "decoder": None,
        "model": {"type": "WordLevel", "unk_token": control[UNK],
                  "vocab": {**{token: i for i, token in control.items()},
                            **{f"w{i}": FIRST_WORD + i for i in range(WORDS)}}}})
    write("tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": control[BOS],
                                    "eos_token": control[END]})
    words = {"text": text(10 * WINDOW + 5), "calibration": text(40 * WINDOW)}
    for name, of in words.items():
        write(name + ".txt", " ".join(f"w{word}" for word in of) + "\n")
    ids = [FIRST_WORD + word for word in words["text"]]
    step = WINDOW - 1
    with_bos = [[BOS, *ids[i:i + step]] for i in range(0, len(ids) - step + 1, step)]
    without = [ids[i:i + WINDOW] for i in range(0, len(ids) - WINDOW + 1, WINDOW)]
    expected = {"window": WINDOW, "prompt": " ".join(f"w{word}" for word in words["text"][:12])}
    for name, windows, prompt in [("bos", with_bos, [BOS, *ids[:12]]), ("none", without, ids[:12])]:
        of_windows = [losses(tensors, window).mean() for window in windows]
        answer, gap = greedy(tensors, prompt, 16)
        expected[name] = {"window_losses": of_windows, "perplexity": float(np.exp(np.mean(of_windows))),
                          "greedy": answer, "smallest_gap": gap}
        print(name, expected[name]["perplexity"], answer, gap)
    write("expected.json", expected)


main()

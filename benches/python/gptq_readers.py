"""Loads checkpoints of `gptq-quant` with GPTQModel and transformers, and compares their logits with ours.

    python benches/python/gptq_readers.py --model FOLDER --model-name NAME -o benches/python/gptq_readers.md

For each case below, `gptq-quant` writes a checkpoint and `chat-cli logits` runs it. GPTQModel and transformers load the
checkpoint and run it on the same tokens in f32, with the weights unpacked by their own kernels. FOLDER is a float checkpoint
of a Llama with its tokenizer, for example SmolLM2-135M. README.md in this folder lists the packages to install. Exits with
code 1 if a case fails.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import torch
from safetensors.torch import load_file

# Limit for the relative difference of logits. Both sides compute in f32 from the same codes, scales and zeros, except that the
# readers round Gemma's embedding factor to f16. A wrong zero, order or group gives differences of 0.1 and more.
TOLERANCE = 5e-4

# A few windows of self-generated text are enough: this script tests reading, not quality.
QUICK = ["--calib", "self", "--samples", "4", "--seq-len", "128", "--refine", "0", "--gptaq-alpha", "0"]

# Known limits of the readers. These cases are tried too; the report marks a case that unexpectedly works.
NO_RULES = {"transformers": "does not support `dynamic`"}
NO_HEAD = {"transformers": "does not support `lm_head`"}
NO_V1 = {"GPTQModel": "reads asymmetric codes only in version 2"}
NO_FUSED = {"GPTQModel": "expects separate gate and up matrices"}

# Model (a folder of testdata/arch/, or `model` for --model), flags of gptq-quant, readers with a known limit.
CASES = [
    ("llama", [], {}),
    ("llama", ["--group-size", "32", "--format", "gptq_v2"], {}),
    ("llama", ["--group-size", "32", "--sym", "false"], {}),
    ("llama", ["--group-size", "32", "--sym", "false", "--format", "gptq"], NO_V1),
    ("llama", ["--group-size", "-1"], {}),
    ("llama", ["--group-size", "32", "--act-order", "false"], {}),
    ("llama", ["--group-size", "32", "--static-groups", "false"], {}),
    ("llama", ["--group-size", "32", "--static-groups", "false", "--sym", "false"], {}),
    ("llama", ["--bits", "8", "--group-size", "64"], {}),
    ("llama", ["--bits", "8", "--group-size", "64", "--sym", "false"], {}),
    ("llama", ["--bits", "3", "--group-size", "32"], {}),
    ("llama", ["--bits", "3", "--group-size", "64", "--sym", "false"], {}),
    ("llama", ["--bits", "2", "--group-size", "32"], {}),
    ("llama", ["--bits", "2", "--group-size", "32", "--sym", "false"], {}),
    ("llama", ["--grid", "q4f16_1"], {}),
    ("llama", ["--override", r".*\.mlp\..*:bits=8,group=64", "--override", r"model\.layers\.1\.self_attn\.:skip"],
     NO_RULES),
    ("llama", ["--override", r"model\.layers\.0\.:group=32,sym=false", "--override", r".*\.down_proj$:skip"], NO_RULES),
    ("mistral", ["--group-size", "32", "--lm-head"], NO_HEAD),
    ("mistral", ["--group-size", "32", "--lm-head", "--override", "lm_head:bits=8", "--format", "gptq_v2"], NO_HEAD),
    ("phi3", ["--group-size", "32"], NO_FUSED),
    ("qwen2", ["--group-size", "32"], {}),
    ("qwen3", ["--group-size", "32"], {}),
    ("gemma2", ["--group-size", "32"], {}),
    ("gemma3", ["--group-size", "32"], {}),
    # 576 inputs are four and a half groups of 128.
    ("model", [], {}),
    ("model", ["--group-size", "64", "--sym", "false"], {}),
    ("model", ["--group-size", "64", "--override", r".*\.(q|k|v)_proj:bits=8,group=32",
               "--override", r"model\.layers\.(0|1)\.mlp:skip"], NO_RULES),
]


HEADER = """\
# Checkpoints of `gptq-quant` in Python readers

Relative difference between the logits of each reader and ours, in f32 with the weights unpacked by the reader's kernels.
`gptq-quant` at {commit}, with {versions}, on a CPU.

| model | flags | quantized modules by bits | GPTQModel | transformers |
|---|---|---|---|---|"""


def tiny_model(testdata, arch, folder):
    """A checkpoint of `testdata/arch/` with the tokenizer of its vocabulary, which readers require."""
    shutil.copytree(testdata / "arch" / arch / "hf", folder)
    shutil.copy(testdata / "tokenizer" / "tiny-bpe" / "tokenizer.json", folder / "tokenizer.json")
    config = json.loads((folder / "config.json").read_text())
    # GPTQModel's default is the id in the published models, which is outside this vocabulary.
    (folder / "config.json").write_text(json.dumps({**config, "pad_token_id": 0}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return folder


def prompts(vocab_size):
    """Three texts of random tokens, the same for every model."""
    state = 1
    for length in (1, 24, 64):
        ids = []
        for _ in range(length):
            state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
            ids.append((state >> 33) % vocab_size)
        yield ids


def our_logits(programs, model, texts, folder):
    """The output of `chat-cli logits`."""
    logits = []
    for ids in texts:
        (folder / "ids.json").write_text(json.dumps(ids))
        out = folder / "logits.safetensors"
        run([programs / "chat-cli", "logits", model, "--ids", folder / "ids.json", "-o", out, "--device", "cpu"])
        logits.append(load_file(out)["logits"])
    return logits


def run(command):
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}: {result.stderr}")


def unpacked_in_f32(model):
    """Replaces each quantized layer by the weights that its own kernel unpacks. Returns the number of layers by bits."""
    from gptqmodel.nn_modules.qlinear import BaseQuantLinear

    counts = {}
    for name, module in list(model.named_modules()):
        if not isinstance(module, BaseQuantLinear):
            continue
        module.scales = module.scales.float()
        weight = module.dequantize_weight().float()
        linear = torch.nn.Linear(weight.shape[0], weight.shape[1], bias=module.bias is not None)
        linear.weight.data = weight.T.contiguous()
        if module.bias is not None:
            linear.bias.data = module.bias.float()
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, linear)
        counts[module.bits] = counts.get(module.bits, 0) + 1
    torch.nn.Module.float(model).eval()  # transformers overrides `float` of quantized models with an error
    return counts


def gptqmodel_logits(path, texts):
    from gptqmodel import BACKEND, GPTQModel

    loaded = GPTQModel.load(str(path), device="cpu", backend=BACKEND.GPTQ_TORCH, dtype=torch.float16)
    return run_unpacked(loaded.model, texts)


def transformers_logits(path, texts):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(path), device_map="cpu", dtype=torch.float16)
    return run_unpacked(model, texts)


def run_unpacked(model, texts):
    counts = unpacked_in_f32(model)
    with torch.inference_mode():
        logits = [model(torch.tensor([ids])).logits[0].float() for ids in texts]
    return logits, counts


def relative_difference(ours, theirs):
    """The largest of the texts' relative differences."""
    return max(((a - b).norm() / b.norm()).item() for a, b in zip(ours, theirs))


def read_one(reader, path, texts_file, out):
    """Runs a reader in a separate process, because these libraries change each other's state."""
    texts = json.loads(pathlib.Path(texts_file).read_text())
    logits, counts = {"GPTQModel": gptqmodel_logits, "transformers": transformers_logits}[reader](path, texts)
    torch.save({"logits": logits, "counts": counts}, out)


def compare(reader, quantized, folder, ours):
    """The relative difference of a reader's logits as text, and its modules by bits; `None` if it rejects the checkpoint."""
    out = folder / "theirs.pt"
    try:
        run([sys.executable, __file__, "--read", reader, quantized, folder / "texts.json", out])
    except RuntimeError as error:
        print(str(error)[-2000:], file=sys.stderr)
        return None, {}
    theirs = torch.load(out)
    difference = relative_difference(ours, theirs["logits"])
    return f"{difference:.1e}" + ("" if difference < TOLERANCE else " wrong"), theirs["counts"]


def commit():
    command = ["git", "-C", pathlib.Path(__file__).parent, "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def versions():
    import importlib.metadata

    names = ["gptqmodel", "transformers", "optimum", "torch", "safetensors"]
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--programs", type=pathlib.Path, default="target/release")
    parser.add_argument("--tiny", type=pathlib.Path, default="testdata")
    parser.add_argument("--model", type=pathlib.Path)
    parser.add_argument("--model-name", default="the model")
    parser.add_argument("--only", help="cases whose line contains this")
    parser.add_argument("-o", "--output", type=pathlib.Path)
    arguments = parser.parse_args()

    lines = HEADER.format(commit=commit(), versions=versions()).split("\n")
    failed = 0
    for arch, flags, cannot in CASES:
        case = f"{arch} {' '.join(flags)}"
        if (arch == "model" and arguments.model is None) or (arguments.only and arguments.only not in case):
            continue
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            source = arguments.model if arch == "model" else tiny_model(arguments.tiny, arch, folder / "source")
            quantized = folder / "quantized"
            run([arguments.programs / "gptq-quant", source, "-o", quantized, "--device", "cpu", *QUICK, *flags])
            vocab_size = json.loads((source / "config.json").read_text())["vocab_size"]
            texts = list(prompts(vocab_size))
            ours = our_logits(arguments.programs, quantized, texts, folder)
            (folder / "texts.json").write_text(json.dumps(texts))
            cells, widths = [], set()
            for reader in ("GPTQModel", "transformers"):
                cell, counts = compare(reader, quantized, folder, ours)
                is_wrong = cell is None or "wrong" in cell
                if is_wrong != (reader in cannot):
                    failed += 1
                if not is_wrong:
                    widths.add(", ".join(f"{n} of {bits}" for bits, n in sorted(counts.items())))
                cells.append(cannot.get(reader, "not read") if is_wrong else cell)
            name = arguments.model_name if arch == "model" else f"tiny {arch}"
            shown = f"`{' '.join(flags)}`" if flags else ""
            line = f"| {name} | {shown.replace('|', chr(92) + '|')} | {' / '.join(sorted(widths))} | {' | '.join(cells)} |"
            print(line, flush=True)
            lines.append(line)
    if arguments.output:
        arguments.output.write_text("\n".join(lines) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--read"]:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        read_one(*sys.argv[2:6])
    else:
        sys.exit(main())

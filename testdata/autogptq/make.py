"""Quantizes a tiny Llama with AutoGPTQ itself, on a CPU: `python make.py FOLDER_OF_TESTDATA`.

Needs auto-gptq 0.7.1 from PyPI (`pip install --no-deps`), transformers 4.57.6 and torch 2.8.0. This script works around two
obstacles: AutoGPTQ requires a GPU, and it imports packages that are not needed here. AutoGPTQ's own code calibrates, solves,
packs and saves.
"""

import json
import shutil
import sys
import types
from pathlib import Path

import torch
import transformers
import transformers.models.llama.modeling_llama as llama
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM


class Stub(types.ModuleType):
    __path__ = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


for name in [
    "peft", "peft.tuners", "peft.tuners.lora", "peft.tuners.adalora", "peft.peft_model", "peft.mapping", "peft.utils",
    "peft.utils.other", "rouge",
]:
    sys.modules.setdefault(name, Stub(name))
sys.modules["peft"].PEFT_TYPE_TO_CONFIG_MAPPING = {}

import auto_gptq  # noqa: E402
import auto_gptq.modeling._base as base  # noqa: E402
from auto_gptq.modeling.llama import LlamaGPTQForCausalLM  # noqa: E402

base.CUDA_0 = torch.device("cpu")
torch.cuda.synchronize = lambda *args: None
forward = llama.LlamaDecoderLayer.forward
# AutoGPTQ expects layers to return tuples, as in older versions of transformers.
in_tuple = lambda *args, **kwargs: (forward(*args, **kwargs),)  # noqa: E731

testdata = Path(sys.argv[1])
here = testdata / "autogptq"
torch.manual_seed(0)
torch.set_num_threads(1)


def windows(count, length, seed):
    """The same as in `gptq-quant/tests/common/mod.rs`."""
    state, all = seed, []
    for _ in range(count):
        window = []
        for _ in range(length):
            state = (state * 1664525 + 1013904223) % 2**32
            window.append(state >> 23)
        all.append(window)
    return all


def source():
    """The tiny Llama with embeddings near a subspace of 12 dimensions, because activations of real models are correlated, and
    with three channels that are eight times as large."""
    tensors = load_file(testdata / "arch/llama/hf/model.safetensors")
    table = tensors["model.embed_tokens.weight"].float()
    plane = torch.randn(table.shape[0], 12) @ torch.randn(12, table.shape[1]) / 12**0.5
    table = (plane + 0.1 * torch.randn(table.shape)) * table.std()
    table[:, [5, 40, 90]] *= 8
    tensors["model.embed_tokens.weight"] = table.bfloat16()
    folder = here / "source"
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for name in ["config.json", "generation_config.json"]:
        shutil.copy(testdata / "arch/llama/hf" / name, folder / name)
    return folder


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def logits(model):
    with torch.no_grad():
        return torch.cat([model(torch.tensor([window])).logits[0] for window in windows(6, 64, 99)])


folder = source()
expected = logits(load(folder))
report = {
    "made_by": f"auto-gptq {auto_gptq.__version__}, transformers {transformers.__version__}, torch {torch.__version__}, on a CPU",
    "mean_square_logit": float(expected.square().mean()),
    "cases": {},
}
for name, options in {
    "actorder-sym-g64": dict(bits=4, group_size=64, sym=True, desc_act=True),
    "static-actorder-sym-g32": dict(bits=4, group_size=32, sym=True, desc_act=True, static_groups=True),
}.items():
    config = auto_gptq.BaseQuantizeConfig(
        damp_percent=0.01, true_sequential=True, model_file_base_name="model", **options
    )
    model = LlamaGPTQForCausalLM(load(folder), False, config)
    examples = [{"input_ids": window, "attention_mask": [1] * 40} for window in windows(60, 40, 1)]
    llama.LlamaDecoderLayer.forward = in_tuple
    model.quantize(examples, batch_size=1, use_triton=False, cache_examples_on_gpu=False)
    llama.LlamaDecoderLayer.forward = forward
    out = here / name
    # The type of models loaded on a GPU.
    model.model.half()
    model.save_quantized(str(out), use_safetensors=True)
    # The values of each matrix: the outputs of AutoGPTQ's own layer for the identity matrix.
    values, dequantized = {}, load(folder)
    with torch.no_grad():
        for module_name, module in model.model.named_modules():
            if hasattr(module, "qweight"):
                module = module.float()
                module.bias = None
                weight = module(torch.eye(module.infeatures)).T.contiguous().float()
                values[module_name] = weight
                dequantized.get_submodule(module_name).weight.copy_(weight)
    error = float((logits(dequantized) - expected).square().mean())
    report["cases"][name] = {"mean_square_logit_error": error}
    save_file({"logits": logits(dequantized)[-1].contiguous()} | {
        name: value[:2].contiguous() for name, value in values.items()
    }, out / "expected.safetensors")
    print(name, report["cases"][name])
(here / "report.json").write_text(json.dumps(report, indent=1) + "\n")

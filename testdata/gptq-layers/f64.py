"""Measures the sensitivity of gptq.py's results to rounding: fields `f64_*` of index.json.

    git clone https://github.com/IST-DASLab/gptq && python f64.py gptq

Runs gptq.py in f64 on each configuration: once unchanged, and 15 times with weights and Hessian changed by 1e-14 (relative).
`f64_flipped_codes` is the largest number of codes that differ from the recorded ones, `f64_losses` the smallest and the
largest sum of losses. Made with gptq at commit 2d65066, torch 2.15.0.
"""

import contextlib
import io
import json
import pathlib
import sys
import types

import torch
from safetensors.torch import load_file

HERE = pathlib.Path(__file__).parent
RUNS = 16
NOISE = 1e-14


def gptq_in_f64(checkout):
    sys.path.insert(0, str(checkout))
    source = (checkout / "gptq.py").read_text()
    source = source.replace("W = W.float()", "W = W.double()")
    # gptq.py refers only to the class Conv1D of this module. No layer here is one.
    source = source.replace("import transformers", "class transformers:\n    class Conv1D: pass\n")
    module = types.ModuleType("gptq_in_f64")
    exec(compile(source, "gptq.py", "exec"), module.__dict__)
    return module


def run(gptq, quant, config, weights, hessian):
    layer = torch.nn.Linear(weights.shape[1], weights.shape[0], bias=False)
    layer.weight.data = weights
    solver = gptq.GPTQ(layer)
    solver.H = hessian
    solver.quantizer = quant.Quantizer()
    solver.quantizer.configure(config["bits"], perchannel=True, sym=config["sym"], mse=config["mse"])
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        solver.fasterquant(
            blocksize=config["blocksize"],
            percdamp=config["percdamp"],
            groupsize=config["groupsize"],
            actorder=config["actorder"],
            static_groups=config["static_groups"],
        )
    return layer.weight.data, float(said.getvalue().split("error")[1])


def main():
    checkout = pathlib.Path(sys.argv[1])
    gptq = gptq_in_f64(checkout)
    import quant

    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    torch.cuda.synchronize = lambda: None
    configurations = json.loads((HERE / "index.json").read_text())
    for config in configurations:
        tensors = load_file(HERE / f"{config['case']}.safetensors")
        part = {name: tensors[f"{config['cfg']}.{name}"] for name in ("codes", "scales", "zeros", "g_idx")}
        group = part["g_idx"].long()
        scales, zeros = part["scales"].double()[:, group], part["zeros"].double()[:, group]
        recorded = scales * (part["codes"].double() - zeros)
        flips, losses = [], []
        for seed in range(RUNS):
            generator = torch.Generator().manual_seed(seed)

            def changed(values):
                noise = torch.randn(values.shape, generator=generator) * (NOISE if seed > 0 else 0.0)
                return values.double() * (1 + noise)

            weights, hessian = changed(tensors["W"]), changed(tensors["H"])
            found, loss = run(gptq, quant, config, weights, (hessian + hessian.T) / 2)
            flips.append(int(((found - recorded).abs() > scales.abs() / 2).sum()))
            losses.append(loss)
        config["f64_flipped_codes"] = max(flips)
        config["f64_losses"] = [min(losses), max(losses)]
        print(config["case"], config["cfg"], flips)
    lines = ",\n".join(json.dumps(config) for config in configurations)
    (HERE / "index.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()

"""PEFT's training step on a base in bfloat16 and in bitsandbytes' nf4, on this machine.

    python scripts/devices/bench_peft_quantised.py [--model configs/shapes/llama-3.1-8b] [--forms bfloat16 nf4]
        [--batches 1 4 8] [--length 512] [--rank 16] [--steps 5] [--checkpointing]

Needs PyTorch, transformers, peft and bitsandbytes. Random weights, an adapter of the rank on all linear layers, AdamW
of PyTorch, and gradient checkpointing, as QLoRA has it, unless --no-checkpointing. Prints a line for each form, batch:
milliseconds a step, tokens a second, how much slower than in the first form, gigabytes at the peak.
bench_quantised.py has the same of many adapters at once.
"""

from jaxrun.process.script import run_script

import argparse
import sys
import time
from typing import Any

import bitsandbytes
import peft
import torch
import transformers

from jaxrun.config.script_options import ScriptOptions

DENSE = "bfloat16"
WARM = 2
"""Steps before those that are timed."""


def main() -> int:
    """Measures every form and batch."""
    parser = ScriptOptions(__doc__)
    parser.add_argument("--model", default="configs/shapes/llama-3.1-8b", help="folder of a config.json")
    parser.add_argument("--forms", nargs="+", choices=(DENSE, "nf4"), default=[DENSE, "nf4"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4, 8])
    for name, default in (("length", 512), ("rank", 16), ("steps", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--checkpointing", action=argparse.BooleanOptionalAction, default=True)
    options = parser.read()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    libraries = ", ".join(f"{one.__name__} {one.__version__}" for one in (torch, transformers, peft, bitsandbytes))
    print(f"{options.model} on {torch.cuda.get_device_name() if device == 'cuda' else 'a CPU'}, {libraries}")
    plain: dict[int, float] = {}
    for form in options.forms:
        model = adapted(options, form, device)
        for batch in options.batches:
            ms, peak = measured(model, batch, options, device)
            slower = ms / plain.setdefault(batch, ms) - 1
            speed = batch * options.length / ms * 1e3
            numbers = f"{ms:.1f} ms, {speed:,.0f} tokens/s, {slower:+.1%}, peak {peak / 1e9:.2f} GB"
            print(f"{form}, {batch} x {options.length}: {numbers}", flush=True)
        del model
        if device == "cuda":
            torch.cuda.empty_cache()
    return 0


def adapted(options: argparse.Namespace, form: str, device: str) -> Any:
    """Returns a random model with an adapter, whose linear layers but the head are in a form."""
    config = transformers.AutoConfig.from_pretrained(options.model)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    if form != DENSE:
        for owner in list(model.model.modules()):
            for name, layer in list(owner.named_children()):
                if isinstance(layer, torch.nn.Linear):
                    setattr(owner, name, packed(layer, form, device))
    if options.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    lora = peft.LoraConfig(r=options.rank, target_modules="all-linear", task_type="CAUSAL_LM")
    return peft.get_peft_model(model, lora).train()


def packed(layer: torch.nn.Linear, form: str, device: str) -> torch.nn.Module:
    """Returns a layer of bitsandbytes in place of a plain one, scales quantised again, as QLoRA has them."""
    kinds: dict[str, Any] = {"compress_statistics": True, "quant_type": form}
    has_bias = layer.bias is not None
    made = bitsandbytes.nn.Linear4bit(
        layer.in_features, layer.out_features, has_bias, torch.bfloat16, **kinds, device="meta"
    )
    made.weight = bitsandbytes.nn.Params4bit(layer.weight.data, requires_grad=False, **kinds).to(device)
    made.bias = layer.bias
    return made


def measured(model: Any, batch: int, options: argparse.Namespace, device: str) -> tuple[float, int]:
    """Returns milliseconds of a step and bytes at the peak, 0 on a CPU."""
    trained = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    tokens = torch.randint(0, model.config.vocab_size, (batch, options.length), device=device)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    begun = 0.0
    for number in range(WARM + options.steps):
        if number == WARM:
            wait()
            begun = time.perf_counter()
        model(tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    wait()
    ms = (time.perf_counter() - begun) / options.steps * 1e3
    return ms, torch.cuda.max_memory_allocated() if device == "cuda" else 0


if __name__ == "__main__":
    sys.exit(run_script(main))

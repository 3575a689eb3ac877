"""Tokens a second of a model folder through transformers and PyTorch, on all of this machine's cores.

    PYTHONPATH=. .venv-reference/bin/python scripts/reproduce/measure_transformers.py MODEL [--rows 8] [--length 256]
        [--new-tokens 64]

Reading is one forward pass over `--rows` rows up to the last hidden state, writing a greedy continuation of one row;
the best of three each, as `twistjax measure` does. Prints JSON. Code that the folder brings is run: only give it a
folder of your own.
"""

from jaxrun.process.script import run_script

import json
import os
import time

import torch
from transformers import AutoModelForCausalLM

from jaxrun.config.script_options import ScriptOptions


@torch.no_grad()
def main() -> None:
    """Measures and prints."""
    parser = ScriptOptions(__doc__)
    parser.add_argument("model")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--new-tokens", type=int, default=64)
    options = parser.read()
    torch.set_num_threads(os.cpu_count() or 1)
    own_code = os.path.isfile(os.path.join(options.model, "modeling_ticket.py"))  # noqa: PTH113, PTH118
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32, trust_remote_code=own_code).eval()
    tokens = torch.randint(0, model.config.vocab_size, (options.rows, options.length), generator=torch.manual_seed(0))

    def write() -> None:
        model.generate(
            tokens[:1],
            attention_mask=torch.ones_like(tokens[:1]),
            max_new_tokens=options.new_tokens,
            min_new_tokens=options.new_tokens,
            do_sample=False,
            pad_token_id=0,
        )

    reading = tokens.numel() / seconds(lambda: model.base_model(tokens))
    writing = options.new_tokens / seconds(write)
    print(json.dumps({"tokens/s reading, PyTorch": reading, "tokens/s writing, PyTorch": writing}))


def seconds(call) -> float:
    """Returns the best time of three, after one that warms up."""
    times = []
    for _ in range(4):
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return min(times[1:])


if __name__ == "__main__":
    raise SystemExit(run_script(main))

"""Frequencies and attention factors of rotations by transformers.

usage: rope_frequencies.py JOBS.json OUT.npz

Each job is an object with `config`, a config.json, and `length`, tokens of a text. OUT.npz holds, by the number of the
job, the frequencies with the attention factor behind them.
"""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig


def main(jobs: str, out: str):
    found = {}
    for number, job in enumerate(json.loads(Path(jobs).read_text())):
        config = AutoConfig.for_model(**job["config"])
        kind = config.model_type
        module = importlib.import_module(f"transformers.models.{kind}.modeling_{kind}")
        rotary = getattr(module, f"{kind.capitalize()}RotaryEmbedding")(config)
        rotary(torch.zeros(1), torch.tensor([[job["length"] - 1]]))
        found[str(number)] = np.append(rotary.inv_freq.numpy(), rotary.attention_scaling).astype(np.float32)
    np.savez(out, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Logits of given models by transformers.

usage: compute_logits.py TOKENS.npz OUT.npz MODEL...

TOKENS.npz holds int64 [batch, length] by model name; OUT.npz the float32 logits. A model is a folder or a .gguf file.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM


@torch.no_grad()
def main(tokens_path: str, out: str, *models: str):
    found = {}
    with np.load(tokens_path) as tokens:
        for path in map(Path, models):
            packed = path.suffix == ".gguf"
            extra = {"gguf_file": path.name} if packed else {}
            if (path / "modeling_ticket.py").is_file():
                extra["trust_remote_code"] = True
            model, report = AutoModelForCausalLM.from_pretrained(
                path.parent if packed else path,
                dtype=torch.float32,
                attn_implementation="eager",
                output_loading_info=True,
                **extra,
            )
            assert not any(report.values()), f"{path}: {report}"
            found[path.name] = model.eval()(torch.from_numpy(tokens[path.name])).logits.numpy()
    np.savez(out, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])

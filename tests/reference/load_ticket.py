"""Loads a ticket's folder as a user of plain transformers does, without any code but transformers' own.

usage: load_ticket.py FOLDER TEXT OUT.npz

OUT.npz holds the text's ``tokens``, int64 [1, length], their ``logits``, float32, and the tokens after ``generate``.
Prints the classes of model and tokenizer and the generation config as JSON.
"""

import json
import sys

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


@torch.no_grad()
def main(folder: str, text: str, out: str):
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False, output_loading_info=True
    )
    assert not any(report.values()), report
    inputs = tokenizer(text, return_tensors="pt")
    written = model.eval().generate(**inputs, max_new_tokens=4, do_sample=False)
    logits = model(**inputs).logits
    np.savez(out, tokens=inputs["input_ids"].numpy(), logits=logits.numpy(), written=written.numpy())
    kinds = {"model": type(model).__name__, "tokenizer": type(tokenizer).__name__}
    print(json.dumps({**kinds, "generation": model.generation_config.to_diff_dict()}))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Makes a tiny model and quantises it as bitsandbytes does; writes a matrix that it dequantises.

python tests/reference/make_quantised.py FOLDER
"""

import sys
from pathlib import Path

import bitsandbytes.functional as bnb
import numpy as np
import torch
import transformers

SHAPE = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "vocab_size": 211}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False}


@torch.no_grad()
def main(folder: Path):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SHAPE, **HEADS)
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    for parameter in model.parameters():
        parameter.mul_(3)  # so that logits are of some size
    model.save_pretrained(folder / "base")
    for code in ("nf4", "fp4"):
        for twice in (False, True):
            kinds = {"bnb_4bit_use_double_quant": twice, "bnb_4bit_compute_dtype": torch.float32}
            method = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=code, **kinds)
            quantised = transformers.AutoModelForCausalLM.from_pretrained(
                folder / "base", quantization_config=method, device_map="cpu", dtype=torch.float32
            )
            name = f"{code}-{'twice' if twice else 'once'}"
            quantised.save_pretrained(folder / name)
            weight = quantised.model.layers[1].mlp.down_proj.weight
            dense = bnb.dequantize_4bit(weight.data, weight.quant_state)
            np.save(folder / f"{name}.npy", dense.numpy())


if __name__ == "__main__":
    main(Path(sys.argv[1]))

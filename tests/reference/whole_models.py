"""Small random multimodal models, and what transformers and peft compute with their text halves.

usage: whole_models.py make FOLDER
       whole_models.py adapt FOLDER

`make` writes FOLDER/NAME, a model folder, and FOLDER/NAME.npz with `tokens` and `logits`. `adapt` puts
FOLDER/NAME-adapter onto FOLDER/NAME and onto the text model FOLDER/NAME-text; FOLDER/NAME-adapted.npz holds the logits
of both.
"""

import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText

TEXT = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
TOWER = {"hidden_size": 32, "intermediate_size": 48}
QWEN = {**TOWER, "depth": 1, "num_heads": 4, "out_hidden_size": 32}
SIGLIP = {**TOWER, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 28, "patch_size": 14}
WINDOW = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"], "query_pre_attn_scalar": 24}
SECTIONS = {"mrope_section": [2, 1, 1], "rope_theta": 5e5}
CONFIGS = {
    "gemma3": {
        "text_config": {**TEXT, **WINDOW, "model_type": "gemma3_text", "head_dim": 8},
        "vision_config": {**SIGLIP, "model_type": "siglip_vision_model"},
        "mm_tokens_per_image": 4,
        "image_token_index": 90,
    },
    "gemma4": {
        "text_config": {
            **TEXT,
            **{key: WINDOW[key] for key in ("sliding_window", "layer_types")},
            **{"head_dim": 8, "global_head_dim": 16, "num_global_key_value_heads": 1, "attention_k_eq_v": True},
            "hidden_size_per_layer_input": 0,
        },
        "vision_config": {
            **TOWER,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 8,
        },
        "image_token_id": 90,
    },
    "mistral3": {
        "text_config": {**TEXT, "model_type": "mistral", "head_dim": 16, "sliding_window": None},
        "vision_config": {**SIGLIP, "model_type": "pixtral", "head_dim": 8},
        "tie_word_embeddings": False,
        "image_token_index": 90,
    },
    "qwen2_5_vl": {
        "text_config": {**TEXT, "rope_parameters": {**SECTIONS, "type": "mrope"}},
        "vision_config": QWEN,
        "image_token_id": 90,
    },
    "qwen3_vl": {
        "text_config": {**TEXT, "head_dim": 8, "rope_parameters": {**SECTIONS, "mrope_interleaved": True}},
        "vision_config": {**QWEN, "num_position_embeddings": 16, "deepstack_visual_indexes": []},
        "tie_word_embeddings": True,
        "image_token_id": 90,
    },
}


def logits(model, tokens):
    return model.eval()(torch.from_numpy(tokens)).logits.float().numpy()


def make(folder: Path) -> None:
    for number, (name, config) in enumerate(CONFIGS.items()):
        torch.manual_seed(number)
        model = AutoModelForImageTextToText.from_config(CONFIG_MAPPING[name](**config)).float()
        for key, parameter in model.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.ndim == 1 else 0.1))
            assert key.startswith(("model.", "lm_head."))
        tokens = torch.randint(3, 90, (2, 11)).numpy()
        model.save_pretrained(folder / name)
        np.savez(folder / f"{name}.npz", tokens=tokens, logits=logits(model, tokens))


def adapt(folder: Path) -> None:
    warnings.simplefilter("error", UserWarning)  # peft warns of entries that it misses
    for name in CONFIGS:
        tokens, adapter = np.load(folder / f"{name}.npz")["tokens"], folder / f"{name}-adapter"
        whole = AutoModelForImageTextToText.from_pretrained(folder / name, dtype=torch.float32)
        whole = PeftModel.from_pretrained(whole, adapter)
        adapted = [key for key, _ in whole.named_parameters() if "lora_A" in key]
        assert all("language_model.layers" in key for key in adapted), adapted
        half = AutoModelForCausalLM.from_pretrained(folder / f"{name}-text", dtype=torch.float32)
        half = PeftModel.from_pretrained(half, adapter, key_mapping={"model.language_model.": "model."})
        found = {"whole": logits(whole, tokens), "half": logits(half, tokens)}
        np.savez(folder / f"{name}-adapted.npz", **found)


if __name__ == "__main__":
    with torch.no_grad():
        {"make": make, "adapt": adapt}[sys.argv[1]](Path(sys.argv[2]))

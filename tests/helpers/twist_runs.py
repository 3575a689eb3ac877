"""Configs of small twistjax runs, and a teacher of theirs."""

from pathlib import Path

import numpy as np

from jaxlm.files.hf import write_weights
from jaxlm.files.tokenizer import load_tokenizer
from jaxlm.files.weights import load_model
from jaxlm.models.functional import weights_by_path

TEXT = "".join(f"{n} and {n + 1} are {2 * n + 1}, which is more than {n * n % 7}.\n" for n in range(400))


def write_twist_config(folder: Path, rest: str) -> Path:
    """Writes text and a config over a random model of two layers; `rest` is the YAML of all but model and data."""
    (folder / "text.txt").write_text(TEXT)
    path = folder / "twist.yaml"
    path.write_text(f"""
output_dir: {folder}/run
model: {{model_name_or_path: configs/tiny, random_init: true}}
data: {{train: {folder}/text.txt, max_length: 32, validation_samples: 4}}
{rest}""")
    return path


def write_teacher(folder: Path) -> Path:
    """Writes a model of the same shape and tokenizer, with other weights, to a new folder."""
    config, model = load_model("configs/tiny", dtype=np.float32, random_init=True, seed=1)
    folder.mkdir()
    tokenizer = load_tokenizer("configs/tiny")
    write_weights(folder, config, weights_by_path(model, np.float32), dtype=np.float32, tokenizer=tokenizer)
    return folder

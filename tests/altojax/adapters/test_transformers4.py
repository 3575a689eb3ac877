"""Adapters and merged models load in transformers 4.57, too, and compute there what they compute here."""

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from adapters import logits_of, random_adapter, random_base

from altojax.adapters.merge import merge
from altojax.adapters.peft_files import export_adapter
from jaxlm.families.registry import FAMILIES, random_config
from jaxlm.families.rope_settings import longrope_attention
from jaxlm.files.hf import save_model

ROOT = Path(__file__).parents[3]
TOKENS = np.random.default_rng(3).integers(0, 256, (2, 11))
TOLERANCE = 1e-4
ONLY_IN_5 = ("ministral3", "gemma4")
"""Their classes came with transformers 5."""


def config_of(family):
    """The tiny model, of Phi-3 with the usual factor of its lengths: 4.57 takes no other."""
    config = random_config(family)
    if config.rope is None or config.rope.scaling != "longrope":
        return config
    original = config.rope.original_max_position
    usual = longrope_attention(config.max_position / original, original)
    return replace(config, rope=replace(config.rope, attention_factor=usual))


@pytest.fixture(scope="module")
def transformers4() -> Path:
    """The folder of transformers 4.57, which goes in front of the reference environment's packages."""
    folder = ROOT / ".venv-transformers4"
    if not folder.is_dir():
        pytest.skip(f"no transformers 4.57 at {folder}; make transformers4 makes it")
    return folder


@pytest.fixture(scope="module")
def worked(reference_python, transformers4, tmp_path_factory):
    """Our logits, and the folder of theirs, by family, in one run of the other environment."""
    root, jobs, ours = tmp_path_factory.mktemp("transformers4"), [], {}
    for family in FAMILIES:
        if family in ONLY_IN_5:
            continue
        config, folder = config_of(family), root / family
        folder.mkdir()
        base = random_base(config)
        save_model(folder / "base", config, base, dtype=jnp.float32)
        spec, adapter = random_adapter(config)
        export_adapter(folder / "adapter", spec, adapter, config, None, {})
        merge(base, spec, adapter)
        save_model(folder / "merged", config, base, dtype=jnp.float32)
        ours[family] = logits_of(base, TOKENS)
        # Its default for Gemma 2 leaves out the bound of attention's logits.
        job = {"adapter": str(folder / "adapter"), "tokens": TOKENS.tolist(), "attention": "eager"}
        jobs.append({"do": "adapter", **job, "base": str(folder / "base"), "out": str(folder / "adapter.npy")})
        jobs.append({"do": "plain", **job, "base": str(folder / "merged"), "out": str(folder / "merged.npy")})
    (root / "jobs.json").write_text(json.dumps(jobs))
    command = [str(reference_python), str(ROOT / "tests/reference/load_adapter.py"), str(root / "jobs.json")]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(transformers4)}, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return root, ours


@pytest.mark.parametrize("kind", ["adapter", "merged"])
@pytest.mark.parametrize("family", [one for one in FAMILIES if one not in ONLY_IN_5])
def test_logits_are_ours(worked, family, kind):
    root, ours = worked
    theirs = np.load(root / family / f"{kind}.npy")
    assert np.abs(theirs - ours[family]).max() <= TOLERANCE * max(1.0, float(ours[family].std()))

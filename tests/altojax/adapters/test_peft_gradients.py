"""An adapter on fused projections, or beside experts, has the gradients that peft computes on the real class."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from adapters import random_adapter, random_base
from flax import nnx

from altojax.adapters.peft_files import export_adapter
from altojax.device.multi_lora import LoRA
from altojax.inference.adapted_model import AdaptedModel
from jaxlm.families.names import projections
from jaxlm.families.registry import random_config
from jaxlm.files.hf import save_model

TOKENS = np.random.default_rng(3).integers(0, 256, (2, 12))


@pytest.mark.parametrize(("family", "targets"), [("phi3", ["qkv_proj", "gate_up_proj"]), ("qwen3_moe", "all-linear")])
def test_gradients_of_an_adapter_are_pefts(family, targets, reference, tmp_path):
    config = random_config(family)
    model = random_base(config)
    save_model(tmp_path / "base", config, model, dtype=jnp.float32)
    spec, adapter = random_adapter(config, targets)
    export_adapter(tmp_path / "adapter", spec, adapter, config, None, {})
    job = {"do": "gradients", "tokens": TOKENS.tolist(), "out": str(tmp_path / "out.npz")}
    job |= {name: str(tmp_path / name) for name in ("base", "adapter")}
    (tmp_path / "jobs.json").write_text(json.dumps([job]))
    reference("load_adapter.py", tmp_path / "jobs.json")

    adapted = AdaptedModel(model, [(spec, adapter)])
    graph, trained, rest = nnx.split(adapted.model, LoRA, ...)
    tokens, routing = jnp.asarray(TOKENS, jnp.int32), adapted.routing([1, 1])

    @jax.jit
    @jax.grad
    def gradients(trained):
        found = nnx.merge(graph, trained, rest)
        logits = found(tokens, routing=routing) @ found.head_kernel().T
        return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:]).mean()

    ours = {path: np.asarray(one.get_value()) for path, one in nnx.to_flat_state(gradients(trained))}
    with np.load(tmp_path / "out.npz") as theirs:
        assert len(theirs) == 2 * len(spec.modules) * config.num_layers
        for key in spec.modules:
            for layer in range(config.num_layers):
                for half in ("A", "B"):
                    name = f"base_model.model.{projections(config)[key].hf.format(i=layer)}.lora_{half}.weight"
                    mine = ours["layers", *key.split("."), f"lora_{half.lower()}"][layer, 1].T
                    assert np.abs(mine - theirs[name]).max() <= 1e-4 * np.abs(theirs[name]).max(), name

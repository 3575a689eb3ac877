"""An adapter on fused projections, layers of several shapes, convolutions or experts has the gradients of peft."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from adapters import random_adapter, random_base
from flax import nnx

from altojax.adapters.peft_files import adapter_tensors, export_adapter
from altojax.device.multi_lora.routing import LoRA
from altojax.inference.adapted_model import AdaptedModel
from jaxlm.families.names import adaptable
from jaxlm.families.registry import random_config
from jaxlm.files.hf import save_model

TOKENS = np.random.default_rng(3).integers(0, 256, (2, 12))


EXPERTS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")


CASES = {
    "phi3": (["qkv_proj", "gate_up_proj"], ()),
    "gemma4": (["q_proj", "v_proj", "layers.1.self_attn.k_proj", "down_proj"], ()),
    "lfm2": (["q_proj", "in_proj", "out_proj", "w1", "w2", "w3"], ()),
    "qwen3_moe": ("all-linear", EXPERTS),
    "gpt_oss": (["o_proj"], ("layers.0.mlp.experts.down_proj", "experts.gate_up_proj")),
}
"""Target modules and target parameters."""


@pytest.fixture(scope="module")
def made(reference, tmp_path_factory):
    """A base and an adapter of each family, of which peft has computed the gradients."""
    root, jobs, found = tmp_path_factory.mktemp("gradients"), [], {}
    for family, (targets, parameters) in CASES.items():
        config, folder = random_config(family), root / family
        folder.mkdir()
        model = random_base(config)
        save_model(folder / "base", config, model, dtype=jnp.float32)
        spec, adapter = random_adapter(config, targets, target_parameters=parameters)
        export_adapter(folder / "adapter", spec, adapter, config, None, {})
        job = {"do": "gradients", "tokens": TOKENS.tolist(), "out": str(folder / "out.npz")}
        jobs.append(job | {name: str(folder / name) for name in ("base", "adapter")})
        found[family] = folder, model, spec, adapter
    (root / "jobs.json").write_text(json.dumps(jobs))
    reference("load_adapter.py", root / "jobs.json")
    return found


@pytest.mark.parametrize("family", CASES)
def test_gradients_of_an_adapter_are_pefts(made, family):
    folder, model, spec, adapter = made[family]
    config = model.config
    adapted = AdaptedModel(model, [(spec, adapter)])
    graph, trained, rest = nnx.split(adapted.model, LoRA, ...)
    tokens, routing = jnp.asarray(TOKENS, jnp.int32), adapted.routing([1, 1])

    @jax.jit
    @jax.grad
    def gradients(trained):
        found = nnx.merge(graph, trained, rest)
        logits = found.logits(found(tokens, routing=routing))
        return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:]).mean()

    ours = {path: np.asarray(one.get_value()) for path, one in nnx.to_flat_state(gradients(trained))}
    with np.load(folder / "out.npz") as theirs:
        assert len(theirs) == 2 * sum(map(len, spec.modules.values()))
        paths = {key: tuple(adaptable(config)[key].path.split(".")) for key in spec.modules}
        halves = {key: tuple(ours[*path, f"lora_{half}"][:, 1] for half in "ab") for key, path in paths.items()}
        for name, mine in adapter_tensors(spec, halves, config).items():
            assert np.abs(mine - theirs[name]).max() <= 1e-4 * np.abs(theirs[name]).max(), name

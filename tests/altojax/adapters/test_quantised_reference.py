"""On a base in every stored form an adapter has the logits and gradients that transformers and peft compute."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from adapters import random_adapter
from flax import nnx
from quantised_folders import quantised, tensors_of
from safetensors.numpy import save_file

from altojax.adapters.peft_files import adapter_tensors, export_adapter
from altojax.device.multi_lora.routing import LoRA, Routing
from altojax.inference.adapted_model import AdaptedModel
from jaxlm.devices.frozen_weight import is_packed
from jaxlm.families.names import adaptable
from jaxlm.files.weights import load_model, read_model_config
from jaxlm.quantised.formats import Keep, make_dense

TOKENS = np.random.default_rng(3).integers(3, 211, (2, 24))
TOLERANCE = 1e-4
FORMATS = {"fp8-128": 1 / 32, "fp8-rows": 1 / 32, **dict.fromkeys(("gptq", "awq", "int4", "int4-symmetric"), 1 / 4)}
"""By what scales are multiplied, so that matrices are as large as a model's."""
NAMES = (*FORMATS, "nf4-twice", "fp4-once")


@pytest.fixture(scope="module")
def theirs(reference, tmp_path_factory):
    """A folder of bases, an adapter, and what transformers and peft compute with it on each of them."""
    root = tmp_path_factory.mktemp("bases")
    reference("make_quantised.py", root)
    for name, size in FORMATS.items():
        quantised(root / "base", root / name, name)
        held = tensors_of(root / name)
        # In float32, since transformers and compressed-tensors round what they dequantise to the dtype of the scales.
        scales = {key: size * value.astype(np.float32) for key, value in held.items() if "scale" in key}
        save_file(held | scales, root / name / "model.safetensors", metadata={"format": "pt"})
    config = read_model_config(root / "base")
    spec, adapter = random_adapter(config)
    export_adapter(root / "adapter", spec, adapter, config, None, {})
    jobs = [
        {"do": "gradients", "base": str(root / name), "adapter": str(root / "adapter"), "tokens": TOKENS.tolist()}
        | {"out": str(root / f"{name}.gradients.npz"), "logits": str(root / f"{name}.logits.npy")}
        for name in NAMES
    ]
    (root / "jobs.json").write_text(json.dumps(jobs))
    reference("load_adapter.py", root / "jobs.json")
    return root, spec, adapter


@jax.jit(static_argnums=0)
def gradients(graph, trained, rest):
    """Of the mean loss, and the logits; one program for all forms, once their matrices are dense."""
    tokens = jnp.asarray(TOKENS, jnp.int32)

    def loss(trained):
        model = nnx.merge(graph, trained, rest)
        routing = Routing(jnp.asarray([1, 1], jnp.int32), jnp.asarray([0.0, 2.0], jnp.float32))
        logits = model.logits(model(tokens, routing=routing))
        return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:]).mean(), logits

    return jax.grad(loss, has_aux=True)(trained)


@pytest.mark.parametrize("name", NAMES)
def test_logits_and_gradients_on_a_stored_form_are_those_of_transformers_and_peft(theirs, name):
    root, spec, adapter = theirs
    config, model = load_model(root / name, dtype=jnp.float32, pack=Keep.RELEASED)
    assert is_packed(nnx.state(model))
    make_dense(model, jnp.float32)
    adapted = AdaptedModel(model, [(spec, adapter)])
    found, logits = gradients(*nnx.split(adapted.model, LoRA, ...))
    wanted = np.load(root / f"{name}.logits.npy")
    largest = np.abs(wanted).max()
    print(f"{name}: largest difference of logits {np.abs(logits - wanted).max():.1e}, of {largest:.1f}")
    assert np.abs(logits - wanted).max() <= TOLERANCE < largest
    ours = {path: np.asarray(one.get_value()) for path, one in nnx.to_flat_state(found)}
    paths = {key: tuple(adaptable(config)[key].path.split(".")) for key in spec.modules}
    halves = {key: tuple(ours[*path, f"lora_{half}"][:, 1] for half in "ab") for key, path in paths.items()}
    with np.load(root / f"{name}.gradients.npz") as slopes:
        for tensor, mine in adapter_tensors(spec, halves, config).items():
            assert np.abs(mine - slopes[tensor]).max() <= TOLERANCE * np.abs(slopes[tensor]).max(), tensor

"""Tickets as Hugging Face folders: what transformers makes of them, and what our own loader does."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import CUTTABLE, four_layers
from flax import nnx

from jaxlm.families.registry import FAMILIES, random_config
from jaxlm.files.hf_config import from_hf
from jaxlm.files.tokenizer import load_tokenizer
from jaxlm.files.weights import load_model
from jaxlm.models.functional import Functional, weights_by_path
from jaxlm.models.transformer import Transformer
from jaxrun.process.errors import UserError
from twistjax.tickets.gguf_ticket import save_gguf_ticket
from twistjax.tickets.hf_ticket import MODELING, plain_container, save_ticket
from twistjax.training.gather_scatter import gather
from twistjax.training.units import units_of

TOLERANCE = 1e-4
TOKENS = np.random.default_rng(0).integers(3, 256, (2, 24))
NAMES = [f"{family}-{kind}" for family in CUTTABLE for kind in ("uniform", "protected")]
NAMES.remove("qwen2-uniform")
NAMES += ["gpt2-narrow", "llama-biased", "llama-even", "qwen2-even"]
BRINGS_CODE = {
    *(name for name in NAMES if name.endswith("protected")),
    "gpt2-uniform",
    "gemma3-uniform",
    "cohere2-uniform",
    "phi3-uniform",
    "llama-biased",
}


def full(name: str):
    """A model whose heads divide its width; three quarters of them do not, half of them do."""
    family, kind = name.split("-")
    config = replace(four_layers(family), num_heads=8, num_kv_heads=4)
    if FAMILIES[family].heads == "fill":
        config = replace(config, num_heads=4)
    if name == "qwen2-even":
        config = replace(config, num_heads=4, num_kv_heads=2)
    return replace(config, qkv_bias=True, o_bias=True, mlp_bias=True) if kind == "biased" else config


def cut(name: str):
    """A ticket's config and weights."""
    config, kappa = full(name), 0.5 if name.endswith("even") else 0.75
    model = Transformer(config, dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(1))
    draw = np.random.default_rng(1)
    weights = {
        path: jnp.asarray(draw.normal(0, 0.1, value.shape), jnp.float32) if path.endswith("bias") else value
        for path, value in weights_by_path(model, jnp.float32).items()
    }
    units = units_of(config, [kappa], 32, (1, 2) if name.endswith("protected") else (0, 0))
    small, kept = units.subnetwork(kappa), units.draw(jax.random.key(2), kappa)
    if name.endswith("narrow"):  # all heads, fewer neurons
        every = units.draw(jax.random.key(2), 1.0)
        small = replace(small, num_heads=config.num_heads, num_kv_heads=config.num_kv_heads)
        kept = kept._replace(heads=every.heads, kv_heads=every.kv_heads)
    return small, gather(weights, kept, units)


@pytest.fixture(scope="session")
def tickets(tmp_path_factory):
    """Folders by name, with config, weights and whether plain transformers is said to load them."""
    root, made = tmp_path_factory.mktemp("tickets"), {}
    for name in NAMES:
        small, weights = cut(name)
        (root / name).mkdir()
        plain = save_ticket(root / name, small, weights, dtype=jnp.float32, card="a card")
        made[name] = (root / name, small, weights, plain)
    return made


@pytest.fixture(scope="session")
def theirs(tickets, reference, tmp_path_factory):
    """What transformers computes, by name."""
    root = tmp_path_factory.mktemp("logits")
    np.savez(root / "tokens.npz", **dict.fromkeys(NAMES, TOKENS))
    reference("compute_logits.py", root / "tokens.npz", root / "out.npz", *(folder for folder, *_ in tickets.values()))
    with np.load(root / "out.npz") as found:
        return dict(found)


def logits(config, weights):
    @jax.jit
    def compute(weights):
        model = Functional(config).bind(weights)
        return model.logits(model(jnp.asarray(TOKENS, jnp.int32)))

    return np.asarray(compute(weights))


@pytest.mark.parametrize("name", NAMES)
def test_transformers_computes_a_ticket_as_we_do(name, tickets, theirs):
    folder, config, weights, plain = tickets[name]
    assert np.abs(theirs[name] - logits(config, weights)).max() <= TOLERANCE
    assert plain == (name not in BRINGS_CODE) == (not (folder / MODELING).exists())
    assert (folder / "README.md").read_text() == "a card"


@pytest.mark.parametrize("name", NAMES)
def test_our_loader_reads_a_ticket_of_either_kind(name, tickets):
    folder, config, weights, _ = tickets[name]
    read, model = load_model(folder, dtype=jnp.float32)
    assert replace(read, family=config.family, o_bias=config.o_bias) == replace(config, max_position=read.max_position)
    for path, value in weights_by_path(model, jnp.float32).items():
        np.testing.assert_array_equal(value, weights.get(path, np.zeros_like(value)), path)


def test_a_llama_goes_by_its_own_name_where_transformers_takes_it(tickets):
    names = {name: json.loads((tickets[name][0] / "config.json").read_text())["model_type"] for name in NAMES}
    assert names["llama-even"] == "llama" and names["llama-uniform"] == "mistral"
    assert names["llama-protected"] == "ticket_mistral" and names["llama-biased"] == "ticket_llama"


def test_heads_that_others_would_misread_are_a_llamas_or_refused(tickets):
    folder, config, *_ = tickets["qwen2-even"]
    raw = json.loads((folder / "config.json").read_text())
    assert (raw["model_type"], raw["attention_bias"], raw["head_dim"]) == ("llama", True, 16)
    for odd in (replace(config, num_heads=3), replace(config, sliding_window=8)):
        with pytest.raises(UserError, match=r"a qwen2 with \d heads of 16 in a width of 64: llama.cpp and vLLM mis"):
            plain_container(odd)


def test_a_model_as_it_was_keeps_its_name():
    for family in FAMILIES:
        assert plain_container(random_config(family)) == random_config(family)


@pytest.mark.parametrize(
    ("ticket", "message"),
    [
        (None, "ticket is None, expected a section"),
        ({"first": 4, "last": 1}, r"4 \+ 1 ends, expected fewer than the 4 layers"),
        ({"first": 1, "last": 1}, "num_attention_heads is None, expected a whole number"),
    ],
)
def test_a_damaged_ticket_is_refused_in_one_line(ticket, message, tickets):
    raw = json.loads((tickets["qwen2-protected"][0] / "config.json").read_text())
    assert from_hf(raw).ends == (1, 2)
    with pytest.raises(UserError, match=message):
        from_hf({**raw, "ticket": ticket})


def test_a_qwen2_that_lost_heads_is_a_llama_in_gguf_however_many_it_has(tmp_path):
    config, values = cut("qwen2-uniform")
    spare = ((0, 264 - config.vocab_size), (0, 0))
    config = replace(config, vocab_size=264)
    values = {path: jnp.pad(one, spare) if path.endswith(".embedding") else one for path, one in values.items()}
    path = tmp_path / "m.gguf"
    save_gguf_ticket(path, config, values, dtype="float32", tokenizer=load_tokenizer("configs/tiny"))
    read, model = load_model(path, dtype=jnp.float32)
    assert (read.family, read.num_heads, read.head_dim) == ("llama", config.num_heads, config.head_dim)
    np.testing.assert_allclose(model(TOKENS), Functional(config).bind(values)(TOKENS), rtol=0, atol=TOLERANCE)

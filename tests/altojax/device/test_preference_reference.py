"""Losses, gradients and trajectories of preference pairs are TRL's."""

import json
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from adapters import random_adapter, random_base

from altojax.adapters.peft_files import export_adapter
from altojax.config.objectives import preference_numbers
from altojax.config.search.space import TrialConfig
from altojax.device.batch import Part, rows_here
from altojax.device.executor import Executor
from altojax.device.objectives.preference import PREFERENCE
from altojax.device.objectives.rows import AnswerRow, References
from altojax.device.slots import empty_snapshot
from altojax.device.step import StaticPlan
from jaxlm.families.names import projections
from jaxlm.families.registry import random_config
from jaxlm.files.hf import save_model

STEPS, RATE = 30, 1e-3
LOSSES = [
    ({"trainer": "dpo", "loss_types": ["sigmoid"], "beta": 0.1}, {"beta": 0.1}),
    ({"trainer": "dpo", "loss_types": ["hinge"], "beta": 0.3}, {"loss_type": "hinge", "beta": 0.3}),
    ({"trainer": "dpo", "loss_types": ["ipo"], "beta": 0.2}, {"loss_type": "ipo", "beta": 0.2}),
    ({"trainer": "dpo", "loss_types": ["sigmoid_norm"], "beta": 2.0}, {"loss_type": "sigmoid_norm", "beta": 2.0}),
    (
        {"trainer": "dpo", "loss_types": ["robust"], "beta": 0.1, "label_smoothing": 0.2},
        {"loss_type": "robust", "beta": 0.1, "label_smoothing": 0.2},
    ),
    (
        {"trainer": "dpo", "loss_types": ["sigmoid", "sft"], "loss_weights": [1.0, 0.3], "beta": 0.1},
        {"beta": 0.1, "sft_weight": 0.3},
    ),
    (
        {"trainer": "cpo", "loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.7, "label_smoothing": 0.1},
        {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.7, "label_smoothing": 0.1},
    ),
    ({"trainer": "orpo", "beta": 0.4}, {"loss_type": "orpo", "beta": 0.4}),
]


def drawn_pairs(vocab: int) -> list[dict[str, list[int]]]:
    random = np.random.default_rng(5)
    sizes = [(random.integers(3, 7), *random.integers(2, 9, 2)) for _ in range(5)]
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    return [{name: random.integers(3, vocab, n).tolist() for name, n in zip(names, one, strict=True)} for one in sizes]


def rows_of(pairs: list[dict[str, list[int]]]) -> list[AnswerRow]:
    references, rows = References.unknown(2 * len(pairs)), []
    for pair in pairs:
        for answer in ("chosen_ids", "rejected_ids"):
            tokens = np.array(pair["prompt_ids"] + pair[answer], np.int32)
            targets = np.arange(len(tokens)) >= len(pair["prompt_ids"])
            rows.append(AnswerRow(tokens, targets, references=references, number=len(rows)))
    return rows


def ours(config, model, spec, adapter, rows: list[AnswerRow]) -> tuple[np.ndarray, list[dict], np.ndarray]:
    """The losses of all kinds in one batch, their gradients, and the losses of a trajectory of each."""
    known = {key: one for key, one in projections(config).items() if key in spec.modules}
    sizes = {"accumulates": True, "drops": False, "objective": PREFERENCE}
    geometry = rows_here([[len(row.tokens) for row in rows]], 1)
    executor = Executor(model, StaticPlan(len(LOSSES), spec.rank, known, geometry, **sizes))
    nll = executor.row_losses([(0, rows)], 64)[0]
    rows[0].references.values[:] = -nll
    shapes = {key: (one.in_features, one.out_features) for key, one in known.items()}
    snapshot = empty_snapshot(shapes, config.num_layers, spec.rank, accumulates=True, averages=0)
    snapshot["adapters"] = {key: {"a": a, "b": b} for key, (a, b) in adapter.items()}
    hyper = {"scale": spec.scale, "learning_rate": RATE, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}
    for slot, (_, own) in enumerate(LOSSES):
        numbers = preference_numbers(TrialConfig(**own))
        executor.put(slot, snapshot, {**hyper, **numbers, "total_steps": STEPS, "schedule": 0})

    def parts(apply: bool) -> list[Part]:
        keys = [0] * len(rows)
        return [Part(slot, rows, keys, 1 / PREFERENCE.count(rows), apply=apply) for slot in range(len(LOSSES))]

    losses = np.asarray(executor.train(parts(apply=False)).loss)
    gathered = [executor.take(slot, spec.rank, tuple(known))["gathered"] for slot in range(len(LOSSES))]
    steps = [np.asarray(executor.train(parts(apply=True)).loss) for _ in range(STEPS)]
    return losses, gathered, np.array(steps).T


@pytest.fixture(scope="module")
def both(reference, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trl")
    config = replace(random_config("llama"), vocab_size=320)  # the tokenizer's padding among them
    model = random_base(config)
    save_model(folder / "base", config, model, dtype=jnp.float32)
    spec, adapter = random_adapter(config, ["q_proj", "v_proj", "down_proj"])
    export_adapter(folder / "adapter", spec, adapter, config, None, {})
    pairs = drawn_pairs(config.vocab_size)
    job = {"pairs": pairs, "losses": [theirs for theirs, _ in LOSSES], "steps": STEPS, "learning_rate": RATE}
    job |= {"base": str(folder / "base"), "adapter": str(folder / "adapter"), "tokenizer": "configs/tiny"}
    (folder / "job.json").write_text(json.dumps({**job, "out": str(folder / "out.npz")}))
    reference("train_preferences.py", folder / "job.json")
    with np.load(folder / "out.npz") as theirs:
        return ours(config, model, spec, adapter, rows_of(pairs)), dict(theirs), (config, spec)


def test_losses_of_all_kinds_in_one_batch_are_trls(both):
    (losses, _, _), theirs, _ = both
    assert np.abs(losses - theirs["loss"]).max() <= 1e-5 * np.maximum(1, np.abs(theirs["loss"])).max()


def test_gradients_of_all_kinds_are_trls(both):
    (_, gradients, _), theirs, (config, spec) = both
    for number, ours in enumerate(gradients):
        for key in spec.modules:
            for layer in range(config.num_layers):
                for half in ("A", "B"):
                    path = projections(config)[key].hf.format(i=layer)
                    wanted = theirs[f"{number}/base_model.model.{path}.lora_{half}.weight"]
                    found = np.asarray(ours[key][half.lower()])[layer].T
                    assert np.abs(found - wanted).max() <= 1e-5 * max(1, np.abs(wanted).max()), (LOSSES[number], key)


def test_thirty_steps_of_dpo_are_trls_point_by_point_and_without_a_drift(both):
    (_, _, steps), theirs, _ = both
    residual = steps[0] - theirs["trajectory"]
    assert len(residual) == STEPS and theirs["trajectory"].std() > 1e-3
    assert np.abs(residual).max() <= 1e-4 and abs(residual.mean()) <= 1e-5

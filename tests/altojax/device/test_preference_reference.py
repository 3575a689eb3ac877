"""Losses, gradients and trajectories of preferences are TRL's, of pairs and of answers alone."""

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
from altojax.device.objectives.rows import AnswerRow, References, lone_answer_rows
from altojax.device.slots import empty_snapshot
from altojax.device.step import StaticPlan
from jaxlm.data.documents import Text
from jaxlm.data.examples import Example
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
    (
        {"trainer": "kto", "loss_type": "kto", "beta": 0.3, "desirable_weight": 1.2, "undesirable_weight": 0.7},
        {"loss_type": "kto", "beta": 0.3, "desirable_weight": 1.2, "undesirable_weight": 0.7},
    ),
    (
        {
            **{"trainer": "kto", "loss_type": "apo_zero_unpaired", "calculate_KL": False, "beta": 0.2},
            **{"desirable_weight": 1.0, "undesirable_weight": 1.5},
        },
        {"loss_type": "apo_zero_unpaired", "beta": 0.2, "undesirable_weight": 1.5},
    ),
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
            rows.append(AnswerRow(*written(pair, answer), references=references, number=len(rows)))
    return rows


def written(pair: dict[str, list[int]], answer: str) -> tuple[np.ndarray, np.ndarray]:
    tokens = np.array(pair["prompt_ids"] + pair[answer], np.int32)
    return tokens, np.arange(len(tokens)) >= len(pair["prompt_ids"])


def lone_rows_of(pairs: list[dict[str, list[int]]]) -> list[AnswerRow]:
    """The answers of the pairs, each alone."""

    def example(pair: dict[str, list[int]], answer: str) -> Example:
        return Example(*written(pair, answer), 1, "drawn", Text(""))

    both = [replace(example(pair, "chosen_ids"), rejected=example(pair, "rejected_ids")) for pair in pairs]
    return lone_answer_rows([both], 64)[0][0]


def trls_answers(pairs: list[dict[str, list[int]]]) -> list[dict]:
    """The same as TRL unpairs them, each with the answer before it beside its own (`KTOTrainer._prepare_dataset`)."""
    answers = [
        {"prompt_ids": pair["prompt_ids"], "completion_ids": pair[name], "label": name == "chosen_ids"}
        for name in ("chosen_ids", "rejected_ids")
        for pair in pairs
    ]
    return [one | {"KL_completion_ids": answers[at - 1]["completion_ids"]} for at, one in enumerate(answers)]


def ours(config, model, spec, adapter, pairs: list[dict]) -> tuple[np.ndarray, list[dict], np.ndarray]:
    """The losses of all kinds in one batch, their gradients, and the losses of a trajectory of each."""
    of_pairs, alone = rows_of(pairs), lone_rows_of(pairs)
    rows = [alone if theirs["trainer"] == "kto" else of_pairs for theirs, _ in LOSSES]
    known = {key: one for key, one in projections(config).items() if key in spec.modules}
    sizes = {"accumulates": True, "drops": False, "objective": PREFERENCE}
    geometry = rows_here([[len(row.tokens) for row in [*of_pairs, *alone]]], 1)
    executor = Executor(model, StaticPlan(len(LOSSES), spec.rank, known, geometry, **sizes))
    for own in (of_pairs, alone):
        own[0].references.values[:] = -executor.row_losses([(0, own)], 64)[0]
    snapshot = empty_snapshot(known, spec.rank, accumulates=True, averages=0)
    snapshot["adapters"] = {key: {"a": a, "b": b} for key, (a, b) in adapter.items()}
    hyper = {"scale": spec.scale, "learning_rate": RATE, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}
    for slot, (_, own) in enumerate(LOSSES):
        numbers = preference_numbers(TrialConfig(**own))
        executor.put(slot, snapshot, {**hyper, **numbers, "total_steps": STEPS, "schedule": 0})

    def parts(apply: bool) -> list[Part]:
        return [
            Part(slot, own, [0] * len(own), 1 / PREFERENCE.count(own), apply=apply) for slot, own in enumerate(rows)
        ]

    losses = np.asarray(executor.train(parts(apply=False)).loss)
    for slot, loss in executor.evaluate(list(enumerate(rows)), 64).items():
        assert loss == pytest.approx(losses[slot], abs=2e-6), "an evaluation of the rows of one step"
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
    job["answers"] = trls_answers(pairs)
    job |= {"base": str(folder / "base"), "adapter": str(folder / "adapter"), "tokenizer": "configs/tiny"}
    (folder / "job.json").write_text(json.dumps({**job, "out": str(folder / "out.npz")}))
    reference("train_preferences.py", folder / "job.json")
    with np.load(folder / "out.npz") as theirs:
        return ours(config, model, spec, adapter, pairs), dict(theirs), (config, spec)


def test_answers_alone_lie_beside_those_that_trl_puts_beside_them():
    pairs = drawn_pairs(320)
    rows, answers = lone_rows_of(pairs), trls_answers(pairs)
    assert len(rows) == 2 * len(answers)
    for own, other, answer in zip(rows[::2], rows[1::2], answers, strict=True):
        assert (own.tokens[own.targets].tolist(), own.sign > 0) == (answer["completion_ids"], answer["label"])
        assert other.tokens[other.targets].tolist() == answer["KL_completion_ids"]
        assert own.tokens[~own.targets].tolist() == other.tokens[~other.targets].tolist() == answer["prompt_ids"]


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

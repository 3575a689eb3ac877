"""Prepares a training: model shapes, units, text and rounds, checked before anything is written."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array
from transformers import PreTrainedTokenizerBase

from jaxlm.data.batching.order import order as row_order
from jaxlm.data.chat.chat_templates import with_template
from jaxlm.data.text_rows import TextRows, read_text
from jaxlm.devices.machine import MARGIN
from jaxlm.families.config import ModelConfig
from jaxlm.files.tokenizer import load_tokenizer
from jaxlm.files.weights import load_model, read_model_config
from jaxlm.models.computation import compute_dtype, remat_choices
from jaxlm.models.functional import Functional, weights_by_path
from jaxrun.config.config import config_diff
from jaxrun.process.errors import UserError
from jaxrun.store.opening import data_differences, data_identity
from twistjax.config import SELF, Subnetworks, Training, TwistConfig
from twistjax.training.assignment import Assignment, check_core, core_of
from twistjax.training.gather_scatter import Correction, Weights
from twistjax.training.importance import Order, gradient_scores, rank_by_activations
from twistjax.training.local_training import Adam, Worker
from twistjax.training.rounds import Outer, Rounds, subnet_mesh
from twistjax.training.rounds_plan import RoundsPlan, at_once, plan_of
from twistjax.training.scoring import Scorer, batches
from twistjax.training.units import Units, units_of

LATER_KEYS = {
    "subnetworks": ("order", "core", "importance", "importance_rows"),
    "training": ("teacher", "teacher_share", "outer", "outer_momentum", "outer_learning_rate"),
}
"""Keys that runs of earlier versions do not have, by section; at their defaults a run is what it was without them."""


@dataclass(frozen=True)
class PreparedTraining:
    """Everything a run works on but for weights.

    Attributes:
        model: The full model's shapes.
        tokenizer: Its tokenizer.
        units: What can be dropped.
        plan: The rounds.
        train: Training rows.
        validation: Validation rows.
        day: The date that chat templates were given when they wrote the rows.
    """

    model: ModelConfig
    tokenizer: PreTrainedTokenizerBase
    units: Units
    plan: RoundsPlan
    train: TextRows
    validation: TextRows
    day: date


def prepare(
    config: TwistConfig, text: tuple[TextRows, TextRows] | None = None, day: date | None = None
) -> PreparedTraining:
    """Reads model config, tokenizer and text, and checks that they fit together. Writes nothing, loads no weights.

    Args:
        config: The run.
        text: Training and validation rows, where they have been read before.
        day: What chat templates take for today; None is today.

    Raises:
        UserError: Anything wrong with the input.
    """
    spec, subnetworks, day = config.model, config.subnetworks, day or date.today()
    model = read_model_config(spec.model_name_or_path, weights=not spec.random_init)
    protected = subnetworks.protected_first, subnetworks.protected_last
    units = units_of(model, subnetworks.ladder, subnetworks.block, protected)
    if subnetworks.core:
        check_core(units, subnetworks.core, subnetworks.ladder, subnetworks.workers)
    plain = Subnetworks()
    for key in ("importance", "importance_rows"):
        if not subnetworks.ranks and getattr(subnetworks, key) != getattr(plain, key):
            raise UserError(
                f"subnetworks.{key}: nothing is ranked, expected subnetworks.order importance or a subnetworks.core"
            )
    tokenizer = load_tokenizer(spec.model_name_or_path, trust_remote_code=spec.trust_remote_code)
    tokenizer = with_template(tokenizer, config.data.chat_template)
    if config.data.max_length > model.max_position:
        raise UserError(
            f"data.max_length: given {config.data.max_length}, expected at most the model's {model.max_position}"
        )
    train, validation = text or read_text(config.data, tokenizer, day)
    for rows in (train, validation):
        if (highest := int(rows.tokens.max())) >= model.vocab_size:
            raise UserError(
                f"{rows.name}: the tokenizer gives token {highest}, expected ids below the model's vocabulary of "
                f"{model.vocab_size}; is this the model's own tokenizer?"
            )
    return PreparedTraining(model, tokenizer, units, plan_of(config, len(train.tokens)), train, validation, day)


def identity_of(config: TwistConfig, prepared: PreparedTraining) -> dict[str, Any]:
    """Returns what a run is, as plain data: a folder holds one run, however its config is written.

    Not part of it are output_dir, report_to, baselines, checkpoint_rounds, what the model computes again and, with one
    kappa, how many workers train at once.
    """
    whole = config.model_dump(mode="json", include={"subnetworks", "training", "evaluation", "seed"})
    size = at_once(config.subnetworks) if len(config.subnetworks.ladder) > 1 else None
    whole["subnetworks"] |= {"kappa": list(config.subnetworks.ladder), "workers_at_once": size}
    model = config.model.model_dump(mode="json", include={"model_name_or_path", "random_init"})
    rows = data_identity(config.data, f"{prepared.train.digest}{prepared.validation.digest}")
    for section, keys in LATER_KEYS.items():
        plain = TwistConfig.model_fields[section].default.model_dump(mode="json")
        for key in keys:
            if whole[section][key] == plain[key]:
                del whole[section][key]
    return whole | {"model": model | {"dtype": jnp.dtype(compute_dtype(config.model)).name}, "data": rows}


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Returns what keeps a run of identity `new` from resuming one of identity `old`, in a few words each."""
    rest = [{key: value for key, value in one.items() if key != "data"} for one in (old, new)]
    return [*config_diff(*rest), *data_differences(old["data"], new["data"])]


def load_weights(config: TwistConfig) -> dict[str, Array]:
    """Returns the weights of the model to start from, float32 by path."""
    spec = config.model
    _, model = load_model(spec.model_name_or_path, dtype=jnp.float32, random_init=spec.random_init, seed=config.seed)
    return weights_by_path(model, jnp.float32)


def assignment_of(config: TwistConfig, prepared: PreparedTraining, order: Order | None) -> Assignment:
    """Returns which units a run's subnetworks get, of units that are in this order of importance, if in any."""
    subnetworks, units = config.subnetworks, prepared.units
    if not subnetworks.core:
        return Assignment(units, order)
    return Assignment(units, order, core_of(units, subnetworks.core, subnetworks.ladder, subnetworks.workers))


def ranked(config: TwistConfig, prepared: PreparedTraining, weights: Weights) -> Order | None:
    """Returns the units in the order of their importance to a model, where the run ranks them, else None."""
    if not config.subnetworks.ranks:
        return None
    train, units, spec = prepared.train, prepared.units, config.model
    rows = row_order(len(train.tokens), config.seed, 0)[: config.subnetworks.importance_rows]
    if config.subnetworks.importance == "activations":
        return rank_by_activations(units, weights, train.tokens[rows])
    way = remat_choices(spec)[-1]
    model = Functional(prepared.model, dtype=compute_dtype(spec), **way._asdict())
    text = batches(train.tokens[rows], train.targets[rows], config.training.batch_size)
    return gradient_scores(units, model, weights, text).order()


def scorer_of(config: TwistConfig, prepared: PreparedTraining, correction: Correction | None = None) -> Scorer:
    """Returns what scores this run's tickets over its validation rows; the correction is the run's unless given."""
    return Scorer(
        prepared.units,
        correction or config.subnetworks.correction,
        prepared.validation.tokens,
        prepared.validation.targets,
        dtype=compute_dtype(config.model),
        rows_at_once=config.training.batch_size,
    )


def adam_of(training: Training) -> Adam:
    """Returns the optimizer of a run's workers."""
    return Adam(
        training.adam_beta1,
        training.adam_beta2,
        training.adam_epsilon,
        training.weight_decay,
        training.max_grad_norm,
    )


def build_rounds(config: TwistConfig, prepared: PreparedTraining, memory: int) -> Rounds:
    """Returns the programs of a run, nothing compiled yet.

    Args:
        config: The run.
        prepared: What it works on.
        memory: Bytes of a device.
    """
    spec, training, adam = config.model, config.training, adam_of(config.training)
    workers = {}
    for kappa in config.subnetworks.ladder:
        small = prepared.units.subnetwork(kappa)
        models = [Functional(small, dtype=compute_dtype(spec), **way._asdict()) for way in remat_choices(spec)]
        # Of the full model of the round, as its teacher, one that has all units would learn nothing.
        alone = training.teacher is None or (training.teacher == SELF and kappa == 1)
        whole = None if alone or training.teacher != SELF else Functional(prepared.model, dtype=compute_dtype(spec))
        share = 0.0 if alone else training.teacher_share
        of = prepared.units, kappa, config.subnetworks.correction, adam, share, whole
        workers[kappa] = [Worker(model, *of) for model in models]
    outer = Outer(training.outer_momentum, training.outer_learning_rate) if training.outer == "nesterov" else None
    mesh, budget = subnet_mesh(at_once(config.subnetworks)), int(memory * (1 - MARGIN))
    return Rounds(prepared.units, workers, mesh, budget, outer)

"""The search space of a task: configurations, axes of values and ranges."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import numpy as np
import pydantic

from altojax.config import foreign_keys
from altojax.config.objectives import LossType
from altojax.config.search import grid
from jaxrun.config.config import Seed, StrictModel

Positive = Annotated[int, pydantic.Field(ge=1)]
Share = Annotated[float, pydantic.Field(ge=0, lt=1)]
Size = Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, pydantic.Field(ge=0)]
TargetModules = str | list[str]
Schedule = Literal["constant", "linear", "cosine", "warmup_stable_decay"]


class TrialConfig(StrictModel):
    """One LoRA configuration. Every field may be an axis of a search space.

    Attributes:
        lora_rank: Columns of A.
        lora_alpha: The adapter is scaled by alpha / rank; null is 2 · rank (ALTO).
        use_rslora: Scale by alpha / sqrt(rank) instead.
        lora_dropout: Share of the adapter's input features dropped in training.
        target_modules: ``all-linear``, a list of module names, or a regular expression over whole module paths; with
            `target_parameters` the list may be empty.
        target_parameters: Parameters of experts that are adapted, too, by the ends of their paths, such as
            ``mlp.experts.gate_up_proj``; a list in a list is one choice.
        learning_rate: Its peak.
        lr_scheduler_type: Shape over the trial's own schedule.
        warmup_ratio: Share of the optimizer steps spent on linear warm-up.
        decay_ratio: Share of the steps spent decaying (warmup_stable_decay).
        min_lr_ratio: Where cosine and warmup_stable_decay end, as a share of the peak.
        weight_decay: Decoupled, on A and B.
        adam_beta1: Decay of the first moment.
        adam_beta2: Decay of the second moment.
        adam_epsilon: Added to the root of the second moment.
        max_grad_norm: Clips the norm of this adapter's gradient; 0 does not.
        batch_size: Rows, or pairs, of a micro-batch.
        gradient_accumulation_steps: Micro-batches of an optimizer step.
        num_train_epochs: Length of the schedule.
        train_samples: Length of the schedule in samples; wins over epochs.
        seed: Of the initial A and of dropout; null is the run's. The order of the data is the run's for every trial.
        loss_type: Of preference pairs (docs/how-to/preference.md): sigmoid, which is DPO, hinge, ipo, robust or
            sigmoid_norm, which compare with a reference; simpo or orpo, which need none; or of answers with a label
            kto or apo_zero_unpaired.
        beta: β of that loss: how much a log-ratio to the reference counts; of ipo τ, of orpo the weight of the odds
            ratio.
        label_smoothing: Share of pairs that are taken to be the wrong way around (sigmoid, robust, simpo).
        simpo_gamma: The margin by which simpo wants the chosen answer to be ahead.
        sft_weight: Weight of the chosen answers' cross-entropy, which is added to the loss of pairs.
        desirable_weight: Weight of the losses of desirable answers (kto, apo_zero_unpaired).
        undesirable_weight: Weight of the losses of undesirable answers, likewise.
    """

    lora_rank: Positive = 16
    lora_alpha: Size | None = None
    use_rslora: bool = False
    lora_dropout: Share = 0.0
    target_modules: TargetModules = "all-linear"
    target_parameters: list[str] | None = None
    learning_rate: Size = 2e-4
    lr_scheduler_type: Schedule = "cosine"
    warmup_ratio: Share = 0.03
    decay_ratio: Share = 0.2
    min_lr_ratio: Share = 0.0
    weight_decay: Annotated[NotNegative, pydantic.Field(allow_inf_nan=False)] = 0.01
    adam_beta1: Share = 0.9
    adam_beta2: Share = 0.999
    adam_epsilon: Size = 1e-8
    max_grad_norm: NotNegative = 1.0
    batch_size: Positive = 4
    gradient_accumulation_steps: Positive = 1
    num_train_epochs: Size = 1.0
    train_samples: Positive | None = None
    seed: Seed | None = None
    loss_type: LossType = "sigmoid"
    beta: Size = 0.1
    label_smoothing: Annotated[float, pydantic.Field(ge=0, lt=0.5)] = 0.0
    simpo_gamma: Annotated[NotNegative, pydantic.Field(allow_inf_nan=False)] = 0.5
    sft_weight: Annotated[NotNegative, pydantic.Field(allow_inf_nan=False)] = 0.0
    desirable_weight: Annotated[NotNegative, pydantic.Field(allow_inf_nan=False)] = 1.0
    undesirable_weight: Annotated[NotNegative, pydantic.Field(allow_inf_nan=False)] = 1.0

    foreign_names = foreign_keys.TRIAL
    foreign_values = foreign_keys.SCHEDULES | foreign_keys.LOSSES

    @property
    def alpha(self) -> float:
        """`lora_alpha`, or twice the rank."""
        return 2.0 * self.lora_rank if self.lora_alpha is None else self.lora_alpha

    @property
    def scale(self) -> float:
        """The factor of B·A."""
        return self.alpha / (math.sqrt(self.lora_rank) if self.use_rslora else self.lora_rank)


class Draw(StrictModel):
    """A range to draw from, for ``method: random`` and ``refine``.

    Attributes:
        min: Smallest value.
        max: Largest value.
        log: Uniform in the logarithm.
    """

    min: pydantic.FiniteFloat
    max: pydantic.FiniteFloat
    log: bool = False

    @pydantic.model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max or (self.log and self.min <= 0):
            raise ValueError(f"given min={self.min:g}, max={self.max:g}, expected min <= max, and min > 0 with log")
        return self


def _some(kind: Any) -> Any:
    return Annotated[list[kind], pydantic.Field(min_length=1)]


def _axes() -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, field in TrialConfig.model_fields.items():
        one: Any = field.annotation
        for constraint in field.metadata:
            one = Annotated[one, constraint]
        if name == "target_modules":
            kinds: Any = str | list[str | list[str]] | None
        elif name == "target_parameters":
            kinds = list[str | list[str]] | None
        else:
            number = one not in (bool,) and name not in ("lr_scheduler_type", "loss_type")
            kinds = one | _some(one) | (Draw | None if number else None)
        fields[name] = (kinds, pydantic.Field(None, json_schema_extra={"default": field.default}))
    return fields


class SearchSpace(
    pydantic.create_model("Axes", __base__=StrictModel, __doc__=TrialConfig.__doc__, **_axes()),  # type: ignore[misc]
):
    """Values or axes for every field of a configuration: a list is an axis, ``{min, max, log}`` a range to draw from.

    Attributes:
        method: ``grid``, which null is, tries every combination; ``random`` draws `trials` of them, none twice;
            ``refine`` draws a third of `trials` where LoRA is known to work, and proposes each of the others, when a
            slot falls free, around those that then stand first.
        trials: How many to draw (random, refine), or the most to take of a grid, which is then a random choice of it.
        configurations: Whole configurations to try as they are, on top of the values given here; then no axes are
            allowed.
    """

    method: Literal["grid", "random", "refine"] | None = None
    trials: Positive | None = None
    configurations: Annotated[list[TrialConfig], pydantic.Field(min_length=1)] | None = None

    foreign_names = foreign_keys.SEARCH
    foreign_values = foreign_keys.SCHEDULES | foreign_keys.LOSSES


def merged(shared: SearchSpace, own: SearchSpace) -> dict[str, Any]:
    """Returns what a task's search space says, on top of the one that tasks share: key by key, without nulls."""
    return {**given_in(shared), **given_in(own)}


def given_in(space: SearchSpace) -> dict[str, Any]:
    """Returns what a search space says, by key, without nulls."""
    # In the order of the fields: model_fields_set is a set, whose order changes from process to process.
    given = {name: getattr(space, name) for name in type(space).model_fields if name in space.model_fields_set}
    return {name: value for name, value in given.items() if value is not None}


def choices_of(name: str, value: Any) -> list[Any] | Draw:
    """Returns an axis: its values, one or more, or a range."""
    if isinstance(value, Draw):
        return value
    if name in NAMES:
        nested = isinstance(value, list) and any(isinstance(one, list) or one == "all-linear" for one in value)
        return value if nested else [value]
    return value if isinstance(value, list) else [value]


def most_trials(space: Mapping[str, Any]) -> int:
    """Returns the most trials that a search space may come to."""
    listed, trials = space.get("configurations"), space.get("trials")
    if listed is not None:
        return len(listed)
    if space.get("method") in ("random", "refine"):
        return trials or 0
    axes = {name: choices_of(name, value) for name, value in space.items() if name in TrialConfig.model_fields}
    size = grid.size({name: choices for name, choices in axes.items() if isinstance(choices, list)})
    return size if trials is None else min(size, trials)


def drawn_value(name: str, choices: list[Any] | Draw, random: np.random.Generator) -> Any:
    """Draws a value of an axis: one of a list, all alike, or one of a range, with four digits."""
    if isinstance(choices, list):
        return choices[int(random.integers(len(choices)))]
    low, high = (math.log(choices.min), math.log(choices.max)) if choices.log else (choices.min, choices.max)
    value = low + (high - low) * float(random.random())
    value = math.exp(value) if choices.log else value
    return round(value) if name in WHOLE else min(max(float(f"{value:.4g}"), choices.min), choices.max)


NAMES = ("target_modules", "target_parameters")
"""Fields whose values may be lists."""
WHOLE = ("lora_rank", "batch_size", "gradient_accumulation_steps", "train_samples", "seed")

"""Objectives of tasks, and which of a trial's keys each of them reads."""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from altojax.config.search.space import TrialConfig

ObjectiveName = Literal["sft", "dpo"]
"""Supervised fine-tuning, and preference tuning by pairs."""
LossType = Literal["sigmoid", "hinge", "ipo", "robust", "sigmoid_norm", "simpo", "orpo", "kto", "apo_zero_unpaired"]
"""Losses of preference pairs, and of answers alone."""
LOSS_TYPES: tuple[LossType, ...] = get_args(LossType)
REFERENCE_FREE: tuple[LossType, ...] = ("simpo", "orpo")
"""Those that read no log-probabilities of a reference."""
UNPAIRED: tuple[LossType, ...] = ("kto", "apo_zero_unpaired")
"""Those of answers of which each is desirable or not."""

_READS: Mapping[LossType, tuple[str, ...]] = {
    "sigmoid": ("beta", "label_smoothing", "sft_weight"),
    "hinge": ("beta", "sft_weight"),
    "ipo": ("beta", "sft_weight"),
    "robust": ("beta", "label_smoothing", "sft_weight"),
    "sigmoid_norm": ("beta", "sft_weight"),
    "simpo": ("beta", "label_smoothing", "simpo_gamma", "sft_weight"),
    "orpo": ("beta", "sft_weight"),
    "kto": ("beta", "desirable_weight", "undesirable_weight"),
    "apo_zero_unpaired": ("beta", "desirable_weight", "undesirable_weight"),
}
PREFERENCE_KEYS = (
    "loss_type",
    "beta",
    "label_smoothing",
    "simpo_gamma",
    "sft_weight",
    "desirable_weight",
    "undesirable_weight",
)
"""Keys of a trial that only preference tuning reads."""


def reads(objective: ObjectiveName, loss_type: LossType, key: str) -> bool:
    """Whether a trial's loss depends on one of `PREFERENCE_KEYS`."""
    return objective == "dpo" and (key == "loss_type" or key in _READS[loss_type])


def unread(spaces: Sequence[tuple[ObjectiveName, Mapping[str, Any]]], given: Collection[str]) -> str | None:
    """Returns one of `PREFERENCE_KEYS` that is given and that no trial for which it is reads; None where there is none.

    Args:
        spaces: Objectives of tasks, and what their search spaces say, by key.
        given: Keys that were given for all trials; those of a whole configuration have to be read by its own loss.
    """
    for key in PREFERENCE_KEYS:
        read_at: dict[int, bool] = {}
        for objective, space in spaces:
            listed = [one for one in space.get("configurations") or () if key in one.model_fields_set]
            for place, losses in [(0, _losses(space)), *((id(one), _losses_of(one, space)) for one in listed)]:
                read_at[place] = read_at.get(place, False) or any(reads(objective, loss, key) for loss in losses)
        if not all(read_at[place] for place in read_at if place or key in given):
            return key
    return None


def why_unread(key: str, spaces: Sequence[tuple[ObjectiveName, Mapping[str, Any]]]) -> str:
    """Says what would read a key of `unread`."""
    if all(objective != "dpo" for objective, _ in spaces):
        return ", expected objective: dpo"
    return f", expected a loss_type that does: {', '.join(name for name in LOSS_TYPES if key in _READS[name])}"


def _losses(space: Mapping[str, Any]) -> set[LossType]:
    """Returns the losses of a search space."""
    listed = space.get("configurations")
    return _shared_losses(space) if not listed else set().union(*(_losses_of(one, space) for one in listed))


def _losses_of(one: Any, space: Mapping[str, Any]) -> set[LossType]:
    """Returns the loss of a whole configuration; where it names none, what the space says for all."""
    return {one.loss_type} if "loss_type" in one.model_fields_set else _shared_losses(space)


def _shared_losses(space: Mapping[str, Any]) -> set[LossType]:
    given = space.get("loss_type") or "sigmoid"
    return set(given if isinstance(given, list) else [given])


def needs_reference(space: Mapping[str, Any]) -> bool:
    """Whether any loss of pairs in a search space compares with a reference."""
    return not _losses(space) <= set(REFERENCE_FREE)


def is_unpaired(space: Mapping[str, Any]) -> bool:
    """Whether the losses of a search space are of answers of which each is desirable or not.

    Raises:
        ValueError: Some are, and others are of pairs.
    """
    losses = sorted(_losses(space), key=LOSS_TYPES.index)
    alone = [one for one in losses if one in UNPAIRED]
    if alone and len(alone) < len(losses):
        pair = next(one for one in losses if one not in UNPAIRED)
        raise ValueError(
            f"loss_type has {pair}, which is of pairs, and {alone[0]}, which is of answers that are desirable or not, "
            "expected a task for each: one run tunes both, over one base"
        )
    return bool(alone)


def same_loss(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two trials, by what they say of `PREFERENCE_KEYS`, have losses that can be compared."""
    return all(one.get(key) == other.get(key) for key in PREFERENCE_KEYS)


def base_loss_of(measured: Mapping[str, Any], config: Mapping[str, Any]) -> float | None:
    """Returns the loss of the base by a trial's own loss, from what an event ``base_loss`` says.

    Args:
        measured: The event's payload.
        config: What the trial says of `PREFERENCE_KEYS`, among others.

    Returns:
        None where the base was not measured by that loss: it was not known yet.
    """
    if "loss_type" not in config:
        return float(measured["loss"])
    return next((float(one["loss"]) for one in measured.get("by_loss", ()) if same_loss(one["of"], config)), None)


def preference_numbers(config: "TrialConfig") -> dict[str, float]:
    """Returns what the losses of pairs read of a trial; 0 for what its own does not read."""
    values = {"loss_type": LOSS_TYPES.index(config.loss_type)}
    values |= {key: getattr(config, key) for key in PREFERENCE_KEYS if key != "loss_type"}
    return {key: float(value) if reads("dpo", config.loss_type, key) else 0.0 for key, value in values.items()}

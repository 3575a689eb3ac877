"""The order in which a model's layers run, as periods that repeat: a loop over them is compiled once."""

from collections import Counter
from functools import cache
from typing import NamedTuple

from jaxlm.families.config import LayerStack, ModelConfig
from jaxlm.families.rope import RopeConfig


class LayerKind(NamedTuple):
    """What layers of one shape differ in.

    Attributes:
        window: Newest keys that a query sees; None is all.
        rotation: Which of `rotations` turns queries and keys; None is none.
    """

    window: int | None = None
    rotation: int | None = None


class PeriodLayer(NamedTuple):
    """A layer of a period.

    Attributes:
        stack: Which of `ModelConfig.stacks` it is in.
        place: Where in it, the first time.
        kind: Its own.
    """

    stack: int
    place: int
    kind: LayerKind


class Period(NamedTuple):
    """Layers that repeat: each time all of them, one after the other, each the next of its stack and kind.

    Attributes:
        members: Its layers.
        repeats: How often.
    """

    members: tuple[PeriodLayer, ...]
    repeats: int

    @property
    def steps(self) -> Counter[int]:
        """How many layers of each stack it has."""
        return Counter(member.stack for member in self.members)

    def first(self, stack: int) -> int:
        """Returns where in a stack it begins."""
        return min(member.place for member in self.members if member.stack == stack)


def rotations(config: ModelConfig) -> tuple[tuple[RopeConfig, int], ...]:
    """Returns each rotation that any layer has, with the width of the heads that it turns."""
    if config.positions == "learned":
        return ()
    every = ((one, stack.config.head_dim) for stack in config.stacks for one in _ropes(stack.config))
    return tuple(dict.fromkeys(every))


def _ropes(config: ModelConfig) -> tuple[RopeConfig, ...]:
    return (config.rope,) if config.rope_local is None else (config.rope, config.rope_local)


def layer_kind(config: ModelConfig, stack: LayerStack, place: int) -> LayerKind:
    """Returns the kind of the layer at a place of one of a model's stacks."""
    own = stack.config
    slides = own.sliding_pattern is not None and own.sliding_pattern[place]
    window = own.sliding_window if slides or own.sliding_pattern is None else None
    if own.positions == "learned" or (own.rope_pattern is not None and not own.rope_pattern[place]):
        return LayerKind(window)
    rope = own.rope_local if slides and own.rope_local is not None else own.rope
    return LayerKind(window, rotations(config).index((rope, own.head_dim)))


@cache
def schedule(config: ModelConfig, *, repeats: bool = True) -> tuple[Period, ...]:
    """Returns a model's layers in order.

    Args:
        config: The model.
        repeats: Whether layers that repeat are found; else all layers are one period.
    """
    places = [
        (layer, PeriodLayer(number, place, layer_kind(config, stack, place)))
        for number, stack in enumerate(config.stacks)
        for place, layer in enumerate(stack.layers)
    ]
    layers = tuple(member for _, member in sorted(places))
    if not repeats:
        return (Period(layers, 1),)
    found: list[Period] = []
    while layers:
        found.append(_longest(layers))
        layers = layers[len(found[-1].members) * found[-1].repeats :]
    return tuple(found)


def _longest(layers: tuple[PeriodLayer, ...]) -> Period:
    """Returns the period that covers the most of the first layers; of equals the shortest."""
    alike = [(member.stack, member.kind) for member in layers]
    best = Period(layers[:1], 1)
    for length in range(1, len(layers) // 2 + 1):
        repeats = 1
        while alike[repeats * length : (repeats + 1) * length] == alike[:length]:
            repeats += 1
        if repeats > 1 and repeats * length > len(best.members) * best.repeats:
            best = Period(layers[:length], repeats)
    return best

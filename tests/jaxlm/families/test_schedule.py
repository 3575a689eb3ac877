"""Layers of any shapes and kinds run in their order, and those that repeat are a period."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from jaxlm.families.config import OtherLayers
from jaxlm.families.registry import random_config
from jaxlm.families.schedule import LayerKind, schedule

LLAMA = random_config("llama")


def made_of(kinds):
    """A model of layers that are wider (2), that slide (1) or neither (0); the first is not wider."""
    wide = tuple(layer for layer, kind in enumerate(kinds) if kind == 2)
    pattern = tuple(kind == 1 for kind in kinds)
    own = {"num_layers": len(kinds), "sliding_window": 8, "sliding_pattern": pattern}
    return replace(LLAMA, **own, others=(OtherLayers("wide_layers", wide, (("head_dim", 32),)),) if wide else ())


def layers_of(config, periods):
    """The layers and their windows in the order in which they run."""
    for period in periods:
        for turn in range(period.repeats):
            for stack, place, kind in period.members:
                yield config.stacks[stack].layers[place + turn * period.steps[stack]], kind.window


@given(st.lists(st.integers(0, 2), max_size=12), st.integers(1, 4), st.integers(0, 1))
def test_every_layer_runs_once_in_its_place(kinds, times, first):
    config = made_of([first, *kinds * times])
    wanted = [(layer, 8 if slides else None) for layer, slides in enumerate(config.sliding_pattern)]
    assert list(layers_of(config, schedule(config))) == wanted
    assert list(layers_of(config, schedule(config, repeats=False))) == wanted


@given(st.integers(2, 5), st.integers(2, 8), st.integers(0, 4))
def test_a_pattern_that_repeats_is_compiled_once(slides, times, rest):
    config = made_of(([1] * slides + [2]) * times + [1] * min(rest, slides))
    found = schedule(config)
    assert (len(found[0].members), found[0].repeats) == (slides + 1, times)
    assert sum(len(period.members) for period in found[1:]) <= 1


def test_layers_alike_are_a_period_of_one():
    ((members, repeats),) = schedule(LLAMA)
    assert (len(members), repeats) == (1, LLAMA.num_layers)
    assert [one.kind for one in members] == [LayerKind(rotation=0)]

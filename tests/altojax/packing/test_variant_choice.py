"""The variant of the training step is chosen by predicted seconds, which are near those that were measured."""

from pathlib import Path

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from altojax.config.tune_config import BaseSpec
from altojax.estimates import step_prices
from altojax.estimates.step_prices import Prices, StepVariant, prices_of, tokens_that_fit
from altojax.packing.course import Course
from altojax.packing.variant_choice import PROGRAMS, SKIPPING_PROGRAMS, Offer, fewest_seconds, offer_of, variants_of
from jaxlm.families.names import projections
from jaxlm.files.weights import read_model_config
from jaxlm.models.computation import Remat

SHAPES = Path(__file__).parents[3] / "configs" / "shapes"
FUSED = StepVariant(None, Remat("none", scan_layers=False))
FUSED_SCANNED = StepVariant(None, Remat("full", scan_layers=True))
XLA_IN_PLACE = StepVariant("xla", Remat("none", scan_layers=False))
XLA = StepVariant("xla", Remat("full", scan_layers=True))
STACKED = StepVariant(None, Remat("none", scan_layers=True))
XLA_STACKED = StepVariant("xla", Remat("none", scan_layers=True))

# docs/measured/log.md, 24 and 25 November (H100), 29 and 30 November (H200): base, slots, rank, tokens of the step, its
# milliseconds, and GiB of its memory where that was said.
MEASURED_STEPS = [
    ("smollm2-135m", 60, 64, FUSED, 30720, 123.6, 19.3),
    ("smollm2-135m", 60, 64, XLA_IN_PLACE, 30720, 143.5, 28.1),
    ("smollm2-135m", 60, 64, FUSED_SCANNED, 30720, 150.0, None),
    ("smollm2-135m", 60, 64, XLA, 30720, 189.2, None),
    ("smollm2-135m", 60, 64, XLA_STACKED, 30720, 208.4, 42.1),
    ("llama-3.2-1b", 8, 16, FUSED, 16384, 165.6, 20.1),
    ("llama-3.2-1b", 8, 16, XLA_IN_PLACE, 16384, 203.2, 21.1),
    ("llama-3.2-1b", 8, 16, STACKED, 16384, 227.8, 39.2),
    ("llama-3.1-8b", 4, 16, FUSED, 4096, 228.4, 18.3),
    ("llama-3.1-8b", 4, 16, FUSED_SCANNED, 16384, 1244.5, None),
]
# Seconds to compile and tokens a second. Of 8B's steps by XLA compilations were not measured: those of 135M stand for
# them; XLA's speed there is the run's own, 5,500 tokens of text a second with 1.85 times as many computed.
MEASURED = {
    "smollm2-135m": {
        FUSED: (106, 248_433), XLA_IN_PLACE: (67, 214_097), FUSED_SCANNED: (30, 204_850), XLA: (10.5, 162_328)
    },
    "llama-3.2-1b": {FUSED: (38, 100_990), XLA_IN_PLACE: (52, 80_640), STACKED: (28, 71_924)},
    "llama-3.1-8b": {FUSED: (77, 17_930), FUSED_SCANNED: (36, 13_165), XLA: (10.5, 10_175)},
}  # fmt: skip
# Tokens computed, padding included: 60 trials of 2,048 samples of docs/measured/alto.md, GSM8K's 60 of 2,048 again, and
# its 16 of 256 samples.
RUNS: list[tuple[str, int, int, StepVariant, StepVariant | None]] = [
    ("smollm2-135m", 2048, 35_300_000, XLA, FUSED_SCANNED),
    ("smollm2-135m", 2048, 15_000_000, XLA, None),  # 133 and 134 s
    ("smollm2-135m", 2048, 7_600_000, XLA, None),  # 97 and 89 s; predicted are 138 and 140
    ("llama-3.2-1b", 2048, 35_300_000, FUSED, FUSED),
    ("llama-3.1-8b", 2048, 35_300_000, FUSED, FUSED),
    ("llama-3.1-8b", 256, 1_250_000, XLA, XLA),  # waited and trained as runs: 136 and 156 s
]
"""And what is chosen where kernels compute all rows of a batch, and where fused ones leave out what is empty; None
where it is close."""
CHOICES = [(*run[:3], skips, run[3 + skips]) for run in RUNS for skips in (False, True) if run[3 + skips] is not None]


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")


def shape_of(name):
    return read_model_config(SHAPES / name, weights=False)


def sizes(name, slots, rank):
    return {"slots": slots, "rank": rank, "keys": projections(shape_of(name)).keys()}


def course(steps, tokens):
    return Course(steps, tokens)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(("name", "slots", "rank", "variant", "tokens", "ms", "_"), MEASURED_STEPS)
def test_a_step_takes_the_seconds_that_were_measured(name, slots, rank, variant, tokens, ms, _):
    prices = prices_of(shape_of(name), variant, **sizes(name, slots, rank))
    assert prices.step_s + tokens * prices.token_s == pytest.approx(ms / 1e3, rel=0.17)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("name", "slots", "rank", "variant", "tokens", "_", "gib"), [one for one in MEASURED_STEPS if one[-1] is not None]
)
def test_no_more_is_said_to_fit_than_was_measured_to(name, slots, rank, variant, tokens, _, gib):
    fits = tokens_that_fit(int(gib * 2**30), shape_of(name), variant, **sizes(name, slots, rank))
    assert 0.45 * tokens < fits < 1.1 * tokens


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(("name", "steps", "tokens", "skips", "expected"), CHOICES)
def test_a_run_takes_the_variant_that_measured_seconds_would_choose(monkeypatch, name, steps, tokens, skips, expected):
    monkeypatch.setattr(step_prices, "skips_padding", lambda kernels: skips and kernels is None)

    def seconds_of(variant):
        compile_s, speed = MEASURED[name][variant]
        programs = SKIPPING_PROGRAMS if skips and variant.kernels is None else PROGRAMS
        return programs * compile_s + tokens / speed

    assert min(MEASURED[name], key=seconds_of) == expected
    spec, budget = BaseSpec(model_name_or_path="x"), int(0.95 * 139 * 2**30)
    every = [
        offer_of(one, spec, shape_of(name), None, budget, forms={}, **sizes(name, 16, 64), parameter_bytes=16)
        for one in variants_of(spec, (None, "xla"))
    ]
    assert fewest_seconds(every, course(steps, tokens), 8 * 384).variant == expected


seconds = st.floats(1e-6, 1e3, allow_nan=False)
offered = st.lists(
    st.builds(Offer, st.just(XLA), st.builds(Prices, st.just(0.025), seconds, seconds)), min_size=1, max_size=8
)


@given(offered, st.integers(1, 10_000), st.integers(1, 10**9), st.integers(1, 10**9))
def test_more_tokens_never_choose_slower_ones(offers, steps, tokens, more):
    short = fewest_seconds(offers, course(steps, tokens), 1)
    long = fewest_seconds(offers, course(steps, tokens + more), 1)
    assert long.prices.token_s <= short.prices.token_s * (1 + 1e-9)
    assert long.compile_s >= short.compile_s * (1 - 1e-9)


@given(offered, st.integers(1, 10_000), st.integers(1, 10**9))
def test_no_other_variant_takes_fewer_seconds(offers, steps, tokens):
    run = course(steps, tokens)
    best = fewest_seconds(offers, run, 1)
    assert all(best.compile_s + best.training_s(run) <= one.compile_s + one.training_s(run) for one in offers)


def test_a_variant_that_memory_does_not_hold_is_left_out_unless_none_is_held():
    fast, slow = Prices(0.0, 1e-6, 1.0), Prices(0.0, 1e-5, 1.0)
    offers = [Offer(FUSED, fast, tokens=1000), Offer(XLA, slow)]
    assert fewest_seconds(offers, course(10, 10**9), 1000).variant == FUSED
    assert fewest_seconds(offers, course(10, 10**9), 1001).variant == XLA
    assert fewest_seconds(offers[:1], course(10, 10**9), 1001).variant == FUSED


def test_smaller_steps_are_more_of_them():
    prices = Prices(1.0, 0.0, 1.0)
    assert Offer(XLA, prices, tokens=100).training_s(course(3, 1000)) == 10
    assert Offer(XLA, prices, tokens=1000).training_s(course(3, 1000)) == 3


@pytest.mark.parametrize("platform", ["cpu", "tpu", "gpu"])
@pytest.mark.parametrize("remat", ["none", "dots", "full"])
@pytest.mark.parametrize("scan", [True, False])
def test_what_a_config_says_is_not_chosen_otherwise(monkeypatch, platform, remat, scan):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    spec = BaseSpec(model_name_or_path="x", remat=remat, scan_layers=scan, kernels="xla")
    assert variants_of(spec, ("xla",)) == [StepVariant("xla", Remat(remat, scan))]


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_on_other_devices_layers_are_scanned_and_the_least_is_computed_again(monkeypatch, platform):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    assert variants_of(BaseSpec(model_name_or_path="x"), ("xla",)) == [XLA_STACKED]

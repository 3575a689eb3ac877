"""The Triton kernels: interpreted on a CPU against the float32 reference, and compiled for real GPUs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from altojax.search import ModelSpec
from altojax.setup import kernels_of
from harness.errors import UserError
from pallas_kernels import Dropout, api, choose, fitting, lora_matmul
from pallas_kernels.api import IMPLEMENTATIONS
from pallas_kernels.dropout import keep_mask
from pallas_kernels.triton.tiles import refusals

pytest.importorskip("triton", reason="Triton is for Linux")
from triton_interpreter import pretended_ampere


@pytest.fixture(scope="module")
def kernels(script):
    return script("check_kernels")


@pytest.mark.parametrize(
    ("multiprocessors", "tile", "tile_slots", "k", "n", "ranks", "drops"),
    [
        pytest.param(1, 32, (2, 0, 2), 72, (40,), (16, 16, 8), False, id="rows apart, an empty slot, mixed ranks"),
        pytest.param(2, 128, (0, 1), 64, (320,), (8, 16), False, id="two columns of tiles"),
        pytest.param(3, 48, (1, 0, 1), 96, (136,), (16, 8), True, id="dropout, uneven k and n"),
        pytest.param(1, 64, (0,), 64, (128,), (64,), True, id="rank 64, one slot, dropout"),
        pytest.param(2, 16, (1, 0, 1), 32, (64, 32, 16), (16, 8), False, id="three projections"),
        pytest.param(1, 128, (1, 0), 64, (64, 32, 32), (16, 8), True, id="three projections, dropout"),
        pytest.param(1, 16, (1, 0), 64, (32, 64), (128, 64), False, id="two projections too wide for one pass"),
    ],
)
def test_interpreted_it_equals_the_reference(kernels, multiprocessors, tile, tile_slots, k, n, ranks, drops):
    case = kernels.Case("", tile, tile_slots, k, n, ranks, drops)
    with pretended_ampere(multiprocessors):
        errors = kernels.check(case, "triton", seed=multiprocessors)
    assert max(errors.values()) < kernels.BOUND, errors


def test_a_neighbours_nan_reaches_neither_my_rows_nor_my_gradients():
    draw = np.random.default_rng(0)
    x, dy = (jnp.asarray(draw.standard_normal((64, 32)), jnp.bfloat16) for _ in range(2))
    w = jnp.asarray(draw.standard_normal((32, 32)), jnp.bfloat16)
    healthy = jnp.asarray(draw.standard_normal((2, 32, 16)), jnp.float32)
    b = jnp.asarray(draw.standard_normal((2, 16, 32)), jnp.float32)
    slots = jnp.asarray([1, 0], jnp.int32)

    @jax.jit
    def both(x, a, b, dy):
        y, backward = jax.vjp(
            lambda x, a, b: lora_matmul(x, w, a, b, jnp.ones(2), slots, implementation="triton"), x, a, b
        )
        return y, *backward(dy)

    with pretended_ampere(1):
        mine, sick = (jax.block_until_ready(both(x, a, b, dy)) for a in (healthy, healthy.at[1].set(jnp.nan)))
    assert bool(jnp.isnan(sick[0][:32].astype(jnp.float32)).all())
    for name, before, after in zip(("y", "dx"), mine[:2], sick[:2], strict=True):
        np.testing.assert_array_equal(after[32:], before[32:], name)
    for name, before, after in zip(("da", "db"), mine[2:], sick[2:], strict=True):
        np.testing.assert_array_equal(after[0], before[0], name)


def test_it_drops_the_very_features_that_the_reference_drops():
    draw = np.random.default_rng(1)
    x, dy = (jnp.asarray(draw.uniform(1, 2, (64, 48)), jnp.bfloat16) for _ in range(2))
    w, slots = jnp.zeros((48, 48), jnp.bfloat16), jnp.asarray([1, 0], jnp.int32)
    a, b = (jnp.asarray(draw.uniform(1, 2, shape), jnp.float32) for shape in ((2, 48, 16), (2, 16, 48)))
    keys = jnp.asarray(draw.integers(0, 2**32, 64, np.uint32))
    dropout = Dropout(jnp.asarray([0.1, 0.6], jnp.float32), keys)

    def outputs(x):
        return lora_matmul(x, w, a, b, jnp.ones(2), slots, dropout=dropout, implementation="triton")

    with pretended_ampere(2):
        dx = jax.block_until_ready(jax.jit(lambda x, dy: jax.vjp(outputs, x)[1](dy)[0])(x, dy))
    rate = jnp.repeat(dropout.rate[slots], 32, total_repeat_length=64)
    np.testing.assert_array_equal(np.asarray(dx != 0), keep_mask(keys, rate, 48))


@pytest.mark.parametrize("capability", [80, 89, 90])
def test_its_kernels_compile_for_real_gpus_in_the_memory_that_they_have(capability):
    """Without the interpreter, which the environment of all other tests asks for."""
    script = Path(__file__).with_name("compile_triton_kernels.py")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(script), str(capability)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    most = {80: 163, 89: 99, 90: 227}[capability] * 1024
    lines = [line.split() for line in done.stdout.splitlines()]
    assert {name for name, *_ in lines} == {"adapter_gemm", "down_projection", "segment_sums", "add_segments"}
    assert all(int(shared) <= most for _, shared, *_ in lines), done.stdout
    assert all("mma" in instruction for name, _, instruction in lines if name != "add_segments"), done.stdout


def test_what_it_does_not_take_is_refused_with_every_reason():
    x, w = jnp.zeros((24, 100), jnp.float32), jnp.zeros((100, 64), jnp.float32)
    reasons = refusals(x, w, jnp.zeros((1, 100, 256)), 1)
    assert len(reasons) == 3
    for part in ("float32, expected bfloat16", "24 tokens a tile, expected a multiple of 16", "rank 256"):
        assert any(part in reason for reason in reasons), part


def test_it_takes_row_tiles_and_widths_that_hopper_kernels_refuse():
    x, w, a = jnp.zeros((144, 100), jnp.bfloat16), jnp.zeros((100, 72), jnp.bfloat16), jnp.zeros((1, 100, 8))
    assert IMPLEMENTATIONS["mosaic_gpu"].operands(x, w, a, 3)
    assert not IMPLEMENTATIONS["triton"].operands(x, w, a, 3)
    assert fitting("triton", (x, w, a, 3)) == "triton"


def test_a_machine_without_an_nvidia_gpu_says_so():
    name, passed_over = choose()
    assert name == "xla"
    assert "triton: this is a CPU, expected an NVIDIA GPU (compute capability 8.0 or newer)" in passed_over
    with pytest.raises(UserError, match=r"model\.kernels: triton cannot run here: this is a CPU"):
        kernels_of(ModelSpec(model_name_or_path="x", kernels="triton"))


@pytest.mark.parametrize(
    ("capability", "installed", "reason"),
    [
        ("8.9", True, None),
        ("12.0", True, None),
        ("7.5", True, "compute capability 7.5, expected 8.0"),
        ("gfx942", True, "compute capability gfx942, expected 8.0"),
        ("8.0", False, "jax-triton is not installed, expected pip install 'altojax\\[gpu\\]'"),
    ],
)
def test_a_gpu_that_cannot_run_it_says_why(monkeypatch, capability, installed, reason):
    monkeypatch.setattr(api.jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(api, "capability", lambda: capability)
    monkeypatch.setattr(api.importlib.util, "find_spec", lambda name: object() if installed else None)
    reasons = IMPLEMENTATIONS["triton"].device()
    assert bool(reasons) == bool(reason)
    if reason:
        assert re.search(reason, reasons[0])

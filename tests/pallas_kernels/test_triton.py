"""The Triton kernels: interpreted on a CPU against the float32 reference, and compiled for real GPUs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

from altojax.config.tune_config import BaseSpec
from altojax.run.prepare import kernels_of
from jaxrun.process.errors import UserError
from pallas_kernels import api, choose, fitting
from pallas_kernels.api import IMPLEMENTATIONS
from pallas_kernels.triton.tiles import refusals

pytest.importorskip("triton", reason="Triton is for Linux")
from kernel_suite import KernelSuite
from triton_interpreter import simulated_ampere

pytestmark = pytest.mark.gpu


class TestTriton(KernelSuite):
    implementation = "triton"
    simulated = staticmethod(simulated_ampere)

    @pytest.mark.parametrize(
        ("tile", "tile_slots", "k", "n", "drops"),
        [
            pytest.param(32, (2, 0, 2), 72, (40,), False, id="uneven k and n"),
            pytest.param(48, (1, 0, 1), 96, (136, 32, 16), True, id="row tiles of 16, three projections, dropout"),
        ],
    )
    def test_it_takes_small_row_tiles_and_uneven_widths(self, kernels, tile, tile_slots, k, n, drops):
        case = kernels.Case("", tile, tile_slots, k, n, (16, 16, 8), drops)
        with simulated_ampere(2):
            errors = kernels.check(case, "triton", seed=0)
        assert max(errors.values()) < kernels.BOUND, errors


SHARED_MEMORY = {80: 163 * 1024, 89: 99 * 1024, 90: 227 * 1024}
"""Bytes that a thread block may have, by compute capability."""
OF_HOPPER = ("slot_squares", "slot_sums", "slot_adamw", "slot_adamw_averaged", "table_dense")


@pytest.fixture(scope="module")
def compiled():
    """What the kernels become for each of these: (capability, name, bytes of shared memory, matrix instruction)."""
    script = Path(__file__).with_name("compile_triton_kernels.py")
    # Without the interpreter, which the environment of all other tests asks for.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(script), *map(str, SHARED_MEMORY)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()]


@pytest.mark.parametrize("capability", SHARED_MEMORY)
def test_its_kernels_compile_for_real_gpus_in_the_memory_that_they_have(compiled, capability):
    kernels = [line for given, *line in compiled if given == str(capability)]
    products, others = {"adapter_gemm", "down_projection", "segment_sums"}, {"add_segments"}
    assert {name for name, *_ in kernels} == products | others | set(OF_HOPPER if capability == 90 else ())
    assert all(int(shared) <= SHARED_MEMORY[capability] for _, shared, _ in kernels), kernels
    assert all("mma" in instruction for name, _, instruction in kernels if name in products), kernels


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
        kernels_of(BaseSpec(model_name_or_path="x", kernels="triton"))


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

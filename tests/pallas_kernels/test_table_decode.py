"""The kernel that makes nf4 dense gives the bits that XLA gives, interpreted on a CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.quantised.nf4 import TABLES, nf4
from pallas_kernels.api import IMPLEMENTATIONS
from pallas_kernels.table_decode import decodes, table_dense

pytest.importorskip("triton", reason="Triton is for Linux")
from triton_interpreter import simulated_ampere

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((2, 128, 272), id="layers, and columns that do not fill a program"),
        pytest.param((48, 16), id="one layer in blocks of 16"),
    ],
)
def test_the_kernel_gives_the_bits_of_xla(shape):
    one = nf4(jnp.asarray(np.random.default_rng(0).normal(size=shape).astype(np.float32)))
    with simulated_ampere(2):
        found = np.asarray(table_dense(one.values, one.scale, jnp.asarray(TABLES["nf4"])))
    np.testing.assert_array_equal(found.view(np.uint16), np.asarray(one.dense(jnp.bfloat16)).view(np.uint16))


def test_it_is_for_one_nvidia_gpu_and_blocks_that_its_programs_fill(monkeypatch):
    def asks(rows, dtype=jnp.bfloat16):
        return decodes(jnp.zeros((rows, 16), jnp.uint8), jnp.zeros((1, 16)), dtype)

    assert not asks(32), "this is a CPU"
    gpu = IMPLEMENTATIONS["triton"]._replace(device=list)
    monkeypatch.setitem(IMPLEMENTATIONS, "triton", gpu)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert asks(32) and asks(8) and not (asks(2) or asks(2048) or asks(32, jnp.float32))
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    assert not asks(32)

"""The Hopper kernels: interpreted on a CPU against the float32 reference, and lowered for the real thing."""

import contextlib

import jax
import jax.numpy as jnp
import pytest
from gpu_interpreter import simulated_gpu
from jax._src.pallas.mosaic_gpu.interpret.gpu_callbacks import get_races
from jax.sharding import AbstractDevice, AbstractMesh
from kernel_suite import KernelSuite

from altojax.config.tune_config import BaseSpec
from altojax.run.prepare import kernels_of
from jaxrun.process.errors import UserError
from pallas_kernels import Dropout, choose, fitting, lora_matmul, lora_matmuls
from pallas_kernels.api import IMPLEMENTATIONS
from pallas_kernels.mosaic_gpu.lora import refusals

pytestmark = pytest.mark.gpu

H100 = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu")


class TestMosaicGPU(KernelSuite):
    implementation = "mosaic_gpu"

    @staticmethod
    @contextlib.contextmanager
    def simulated(multiprocessors):
        """No thread races another in the tests with two multiprocessors, which have every kernel between them."""
        races = multiprocessors == 2
        with simulated_gpu(multiprocessors, detect_races=races):
            yield
            assert not races or not get_races().races_found


SIZES = {
    "llama": (16384, 2048, (8192,)),
    "smollm2": (1536, 576, (192,)),
    "three projections": (16384, 2048, (2048, 512, 512)),
}


@pytest.mark.parametrize(
    ("size", "rank", "drops"),
    [
        ("llama", 128, True),
        *(("smollm2", rank, drops) for rank, drops in ((8, True), (32, False))),
        ("three projections", 128, False),
    ],
)
def test_it_lowers_for_an_h100_in_the_memory_that_it_has(size, rank, drops):
    m, k, ns = SIZES[size]

    def both(x, ws, adapters, scale, slots, dropout, dys):
        kind = {"dropout": dropout, "implementation": "mosaic_gpu"}
        ys, backward = jax.vjp(lambda x, adapters: lora_matmuls(x, ws, adapters, scale, slots, **kind), x, adapters)
        return ys, backward(dys)

    def like(*shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(shape, dtype)

    half, slots = jnp.bfloat16, 8
    ws, dys = [like(k, n, dtype=half) for n in ns], tuple(like(m, n, dtype=half) for n in ns)
    adapters = [(like(slots, k, rank), like(slots, rank, n)) for n in ns]
    dropout = Dropout(like(slots), like(m, dtype=jnp.uint32)) if drops else None
    operands = (like(m, k, dtype=half), ws, adapters, like(slots), like(m // 128, dtype=jnp.int32), dropout, dys)
    with jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("x",), abstract_device=H100)):
        lowered = jax.jit(both).trace(*operands).lower(lowering_platforms=("cuda",))
    assert "mosaic_gpu" in lowered.as_text()


def test_more_layers_of_one_shape_lower_no_more_kernels():
    def loss(x, ws, adapters, scale, slots):
        for w, adapter in zip(ws, adapters, strict=True):
            x = lora_matmul(x, w, *adapter, scale, slots, implementation="mosaic_gpu")
        return jnp.sum(x.astype(jnp.float32))

    def kernels(layers):
        like = jax.ShapeDtypeStruct
        ws = [like((128, 128), jnp.bfloat16)] * layers
        adapters = [(like((2, 128, 16), jnp.float32), like((2, 16, 128), jnp.float32))] * layers
        operands = (like((256, 128), jnp.bfloat16), ws, adapters, like((2,), jnp.float32), like((2,), jnp.int32))
        with jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("x",), abstract_device=H100)):
            lowered = jax.jit(jax.grad(loss, argnums=(0, 2))).trace(*operands).lower(lowering_platforms=("cuda",))
        return lowered.as_text().count("custom_call @mosaic_gpu")

    assert kernels(4) == kernels(3) > 0


def test_what_it_does_not_take_is_refused_with_every_reason():
    x, w = jnp.zeros((64, 100), jnp.float32), jnp.zeros((100, 64), jnp.float32)
    a, b = jnp.zeros((1, 100, 256)), jnp.zeros((1, 256, 64))
    reasons = refusals(x, w, a, 1)
    assert len(reasons) == 4
    for part in ("float32, expected bfloat16", "64 tokens a tile", "k is 100", "rank 256"):
        assert any(part in reason for reason in reasons), part
    with pytest.raises(ValueError, match="mosaic_gpu does not take these operands: x is float32"):
        lora_matmul(x, w, a, b, jnp.ones(1), jnp.zeros(1, jnp.int32), implementation="mosaic_gpu")


def test_a_layer_that_it_does_not_take_falls_back_with_a_warning():
    x, w, a = jnp.zeros((192, 64), jnp.bfloat16), jnp.zeros((64, 64), jnp.bfloat16), jnp.zeros((1, 64, 8))
    with pytest.warns(UserWarning, match="mosaic_gpu does not take 64 tokens a tile, expected a multiple of 128"):
        assert fitting("mosaic_gpu", (x, w, a, 3)) == "xla"
    assert fitting("mosaic_gpu", (jnp.zeros((256, 64), jnp.bfloat16), w, a, 2)) == "mosaic_gpu"


def test_an_implementation_that_is_named_is_not_replaced_by_a_faster_one(monkeypatch):
    monkeypatch.setitem(IMPLEMENTATIONS, "mosaic_gpu", IMPLEMENTATIONS["mosaic_gpu"]._replace(device=lambda: []))
    x, w, a = jnp.zeros((256, 64), jnp.bfloat16), jnp.zeros((64, 64), jnp.bfloat16), jnp.zeros((1, 64, 8))
    assert fitting(None, (x, w, a, 2)) == "mosaic_gpu"
    assert fitting("xla", (x, w, a, 2)) == "xla"


def test_a_machine_without_a_hopper_gpu_says_so():
    name, passed_over = choose()
    assert name == "xla"
    assert "expected a Hopper GPU" in passed_over[0]
    with pytest.raises(UserError, match=r"model\.kernels: mosaic_gpu cannot run here: .*expected auto or xla"):
        kernels_of(BaseSpec(model_name_or_path="x", kernels="mosaic_gpu"))

"""The Hopper kernels: interpreted on a CPU against the float32 reference, and lowered for the real thing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gpu_interpreter import pretended_gpu
from jax._src.pallas.mosaic_gpu.interpret.gpu_callbacks import get_races
from jax.sharding import AbstractDevice, AbstractMesh

from altojax.search import ModelSpec
from altojax.setup import kernels_of
from harness.errors import UserError
from pallas_kernels import Dropout, choose, fitting, lora_matmul, lora_matmuls
from pallas_kernels.api import IMPLEMENTATIONS
from pallas_kernels.dropout import keep_mask
from pallas_kernels.mosaic_gpu.lora import refusals

H100 = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu")


@pytest.fixture(scope="module")
def kernels(script):
    return script("check_kernels")


@pytest.mark.parametrize(
    ("multiprocessors", "tile", "tile_slots", "k", "n", "ranks", "drops"),
    [
        pytest.param(1, 128, (2, 0, 2), 128, (192,), (16, 16, 8), False, id="rows apart, an empty slot, mixed ranks"),
        pytest.param(2, 256, (0, 1), 128, (128,), (8, 16), False, id="two thread blocks share the fetch of W"),
        pytest.param(3, 128, (1, 0, 1), 192, (128,), (16, 8), True, id="dropout, three multiprocessors"),
        pytest.param(1, 128, (0,), 64, (256,), (64,), False, id="rank 64, one slot"),
        pytest.param(1, 128, (1, 0, 1), 128, (128, 64, 64), (16, 8), False, id="three projections"),
        pytest.param(2, 128, (1, 0), 128, (128, 64, 64), (16, 8), True, id="three projections, dropout"),
        pytest.param(1, 128, (1, 0), 64, (64, 128), (128, 64), False, id="two projections too wide for one pass"),
    ],
)
def test_interpreted_it_equals_the_reference(kernels, multiprocessors, tile, tile_slots, k, n, ranks, drops):
    case = kernels.Case("", tile, tile_slots, k, n, ranks, drops)
    with pretended_gpu(multiprocessors):
        errors = kernels.check(case, "mosaic_gpu", seed=multiprocessors)
    assert max(errors.values()) < kernels.BOUND, errors


def test_a_neighbours_nan_reaches_neither_my_rows_nor_my_gradients():
    draw = np.random.default_rng(0)
    x, dy = (jnp.asarray(draw.standard_normal((256, 64)), jnp.bfloat16) for _ in range(2))
    w = jnp.asarray(draw.standard_normal((64, 64)), jnp.bfloat16)
    healthy = jnp.asarray(draw.standard_normal((2, 64, 16)), jnp.float32)
    b = jnp.asarray(draw.standard_normal((2, 16, 64)), jnp.float32)
    slots = jnp.asarray([1, 0], jnp.int32)

    @jax.jit
    def both(x, a, b, dy):
        y, backward = jax.vjp(
            lambda x, a, b: lora_matmul(x, w, a, b, jnp.ones(2), slots, implementation="mosaic_gpu"), x, a, b
        )
        return y, *backward(dy)

    with pretended_gpu(1):
        mine, sick = (both(x, a, b, dy) for a in (healthy, healthy.at[1].set(jnp.nan)))
    assert bool(jnp.isnan(sick[0][:128].astype(jnp.float32)).all())
    for name, before, after in zip(("y", "dx"), mine[:2], sick[:2], strict=True):
        np.testing.assert_array_equal(after[128:], before[128:], name)
    for name, before, after in zip(("da", "db"), mine[2:], sick[2:], strict=True):
        np.testing.assert_array_equal(after[0], before[0], name)


def test_it_drops_the_very_features_that_the_reference_drops():
    draw = np.random.default_rng(1)
    x, dy = (jnp.asarray(draw.uniform(1, 2, (256, 64)), jnp.bfloat16) for _ in range(2))
    w, slots = jnp.zeros((64, 64), jnp.bfloat16), jnp.asarray([1, 0], jnp.int32)
    a, b = (jnp.asarray(draw.uniform(1, 2, shape), jnp.float32) for shape in ((2, 64, 16), (2, 16, 64)))
    keys = jnp.asarray(draw.integers(0, 2**32, 256, np.uint32))
    dropout = Dropout(jnp.asarray([0.1, 0.6], jnp.float32), keys)

    def outputs(x):
        return lora_matmul(x, w, a, b, jnp.ones(2), slots, dropout=dropout, implementation="mosaic_gpu")

    with pretended_gpu(2):
        dx = jax.jit(lambda x, dy: jax.vjp(outputs, x)[1](dy)[0])(x, dy)
    rate = jnp.repeat(dropout.rate[slots], 128, total_repeat_length=256)
    np.testing.assert_array_equal(np.asarray(dx != 0), keep_mask(keys, rate, 64))


def test_no_thread_races_another(kernels):
    case = kernels.Case("", 128, (1, 0), 128, (128, 64), (16, 16), drops=True)
    with pretended_gpu(2, detect_races=True):
        kernels.check(case, "mosaic_gpu", seed=0)
        assert not get_races().races_found


@pytest.mark.parametrize("drops", [False, True], ids=["no dropout", "dropout"])
@pytest.mark.parametrize("rank", [8, 16, 32, 64, 128])
@pytest.mark.parametrize(
    ("m", "k", "ns"),
    [(16384, 2048, (8192,)), (1536, 576, (192,)), (16384, 2048, (2048, 512, 512))],
    ids=["llama", "smollm2", "three projections"],
)
def test_it_lowers_for_an_h100_in_the_memory_that_it_has(m, k, ns, rank, drops):
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
        kernels_of(ModelSpec(model_name_or_path="x", kernels="mosaic_gpu"))

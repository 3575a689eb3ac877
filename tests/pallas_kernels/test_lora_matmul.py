"""The grouped adapter GEMM against a float64 reference that knows one slot at a time."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels import choose, lora_matmul
from pallas_kernels.api import IMPLEMENTATIONS

SLOTS, TILE, K, N, RANK = 4, 3, 8, 6, 4
TILE_SLOTS = np.array([0, 2, 0, 3, 2], np.int32)  # slot 1 is empty, slots 0 and 2 own tiles apart from one another
TOKENS = TILE * len(TILE_SLOTS)
ROW_SLOTS = np.repeat(TILE_SLOTS, TILE)
FLOAT32, BFLOAT16 = 2.0**-24, 2.0**-8  # unit roundoffs
several_seeds = given(st.integers(0, 2**32 - 1))
few = settings(max_examples=10, deadline=None)
SMALL = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((TOKENS, K), (K, N), (SLOTS, K, RANK))]
every_implementation = pytest.mark.parametrize(
    "implementation", [name for name, one in IMPLEMENTATIONS.items() if not one.operands(*SMALL, len(TILE_SLOTS))]
)


def inputs(seed: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    shapes = {"x": (TOKENS, K), "w": (K, N), "a": (SLOTS, K, RANK), "b": (SLOTS, RANK, N)}
    arrays = {name: draw.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return {**arrays, "scale": draw.uniform(0.5, 4, SLOTS).astype(np.float32)}


def call(given_arrays: dict, implementation: str, **changed):
    arrays = {name: jnp.asarray(value) for name, value in {**given_arrays, **changed}.items()}
    return lora_matmul(**arrays, tile_slots=jnp.asarray(TILE_SLOTS), implementation=implementation)


def gradients(given_arrays: dict, cotangent: np.ndarray, implementation: str) -> dict[str, np.ndarray]:
    def total(trained):
        return jnp.sum(call(given_arrays, implementation, **trained) * jnp.asarray(cotangent))

    trained = {name: jnp.asarray(given_arrays[name]) for name in "xab"}
    return {name: np.asarray(value) for name, value in jax.grad(total)(trained).items()}


def reference(arrays: dict) -> tuple[np.ndarray, np.ndarray]:
    """Y and the sum of the magnitudes that went into it, float64, each row by its own slot's dense product."""
    x, w, a, b, scale = (np.asarray(arrays[name], np.float64) for name in ("x", "w", "a", "b", "scale"))
    y, size = np.empty((TOKENS, N)), np.empty((TOKENS, N))
    for row, slot in enumerate(ROW_SLOTS):
        y[row] = x[row] @ w + scale[slot] * (x[row] @ a[slot] @ b[slot])
        size[row] = abs(x[row]) @ abs(w) + scale[slot] * (abs(x[row]) @ abs(a[slot]) @ abs(b[slot]))
    return y, size


@every_implementation
@few
@several_seeds
def test_float32_equals_the_dense_product_of_each_rows_own_slot(implementation, seed):
    arrays = inputs(seed)
    expected, size = reference(arrays)
    error = abs(np.asarray(call(arrays, implementation)) - expected)
    assert (error <= (K + RANK + 4) * FLOAT32 * size).all()


@every_implementation
@few
@several_seeds
def test_bfloat16_rounds_three_times_and_accumulates_in_float32(implementation, seed):
    """X·W, H and Y are rounded to bfloat16 once each; inputs are taken as rounded."""
    arrays = {name: jnp.asarray(value) for name, value in inputs(seed).items()}
    arrays = {name: value if name == "scale" else value.astype(jnp.bfloat16) for name, value in arrays.items()}
    y = call(arrays, implementation)
    assert y.dtype == jnp.bfloat16
    exact = {name: np.asarray(value.astype(jnp.float32), np.float64) for name, value in arrays.items()}
    expected, size = reference(exact)
    h = np.einsum("tk,tkr->tr", exact["x"], exact["a"][ROW_SLOTS]) * exact["scale"][ROW_SLOTS, None]
    of_h = np.einsum("tr,trn->tn", abs(h), abs(exact["b"][ROW_SLOTS]))
    bound = BFLOAT16 * (abs(exact["x"] @ exact["w"]) + of_h + abs(expected))
    second_order = 3 * BFLOAT16 * bound
    error = abs(np.asarray(y.astype(jnp.float32)) - expected)
    assert (error <= bound + second_order + (K + RANK + 4) * FLOAT32 * size).all()


@every_implementation
def test_float32_adapters_serve_bfloat16_activations(implementation):
    arrays = {name: jnp.asarray(value) for name, value in inputs(1).items()}
    low = {name: arrays[name].astype(jnp.bfloat16) for name in "xw"}
    rounded = {name: arrays[name].astype(jnp.bfloat16) for name in "ab"}
    mixed, narrow = call({**arrays, **low}, implementation), call({**arrays, **low, **rounded}, implementation)
    assert mixed.dtype == jnp.bfloat16
    np.testing.assert_array_equal(mixed, narrow)


@every_implementation
@few
@several_seeds
def test_gradients_equal_each_slots_own_dense_gradient(implementation, seed):
    arrays = inputs(seed)
    cotangent = np.random.default_rng(seed + 1).standard_normal((TOKENS, N)).astype(np.float32)
    found = gradients(arrays, cotangent, implementation)
    x, w, a, b, scale, dy = (
        np.asarray(value, np.float64) for value in (*(arrays[n] for n in ("x", "w", "a", "b", "scale")), cotangent)
    )
    expected = {"x": dy @ w.T, "a": np.zeros_like(a), "b": np.zeros_like(b)}
    size = {"x": abs(dy) @ abs(w).T, "a": np.zeros_like(a), "b": np.zeros_like(b)}
    for slot in range(SLOTS):
        mine = slot == ROW_SLOTS
        own_x, own_dy = x[mine], dy[mine]
        for into, one_x, one_dy, one_a, one_b in (
            (expected, own_x, own_dy, a[slot], b[slot]),
            (size, abs(own_x), abs(own_dy), abs(a[slot]), abs(b[slot])),
        ):
            into["x"][mine] += scale[slot] * one_dy @ one_b.T @ one_a.T
            into["a"][slot] = scale[slot] * one_x.T @ (one_dy @ one_b.T)
            into["b"][slot] = scale[slot] * (one_x @ one_a).T @ one_dy
    for name in "xab":
        assert (abs(found[name] - expected[name]) <= (TOKENS + K + N + RANK) * FLOAT32 * size[name]).all(), name


@every_implementation
def test_a_slot_without_rows_gets_no_gradient_and_one_without_adapter_is_the_base(implementation):
    arrays = inputs(3)
    found = gradients(arrays, np.ones((TOKENS, N), np.float32), implementation)
    assert not found["a"][1].any() and not found["b"][1].any()
    arrays["a"][2], arrays["b"][2] = 0, 0
    y, base = call(arrays, implementation), jnp.asarray(arrays["x"]) @ jnp.asarray(arrays["w"])
    np.testing.assert_array_equal(y[ROW_SLOTS == 2], base[ROW_SLOTS == 2])
    assert (np.asarray(y)[ROW_SLOTS == 0] != np.asarray(base)[ROW_SLOTS == 0]).any(axis=1).all()


@every_implementation
@few
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, RANK), min_size=SLOTS, max_size=SLOTS))
def test_padding_a_rank_changes_nothing_and_gets_no_gradient(implementation, seed, ranks):
    arrays = inputs(seed)
    for slot, rank in enumerate(ranks):
        arrays["a"][slot, :, rank:], arrays["b"][slot, rank:] = 0, 0
    expected, size = reference(arrays)
    assert (abs(np.asarray(call(arrays, implementation)) - expected) <= (K + RANK + 4) * FLOAT32 * size).all()
    found = gradients(arrays, np.ones((TOKENS, N), np.float32), implementation)
    for slot, rank in enumerate(ranks):
        assert not found["a"][slot, :, rank:].any() and not found["b"][slot, rank:].any()
        assert slot == 1 or (found["a"][slot, :, :rank].any() and found["b"][slot, :rank].any())


@every_implementation
@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["a", "b", "x", "scale"])
def test_a_neighbours_non_finite_values_reach_neither_my_rows_nor_my_gradients(implementation, poison, where):
    healthy, sick = inputs(5), inputs(5)
    sick[where][ROW_SLOTS == 2 if where == "x" else 2] = poison
    cotangent = np.random.default_rng(6).standard_normal((TOKENS, N)).astype(np.float32)
    mine = ROW_SLOTS != 2
    y = np.asarray(call(sick, implementation))
    assert not np.isfinite(y[~mine]).all()
    np.testing.assert_array_equal(y[mine], np.asarray(call(healthy, implementation))[mine])
    before, after = (gradients(arrays, cotangent, implementation) for arrays in (healthy, sick))
    np.testing.assert_array_equal(after["x"][mine], before["x"][mine])
    for name in "ab":
        np.testing.assert_array_equal(np.delete(after[name], 2, 0), np.delete(before[name], 2, 0))


@pytest.mark.parametrize(
    "changed",
    [
        {"x": (TOKENS + 1, K)},
        {"x": (TOKENS, K + 1)},
        {"w": (K + 1, N)},
        {"w": (K, N + 1)},
        {"a": (SLOTS, K + 1, RANK)},
        {"a": (SLOTS + 1, K, RANK)},
        {"b": (SLOTS, RANK - 1, N)},
        {"b": (SLOTS, RANK, N - 1)},
        {"scale": (SLOTS - 1,)},
    ],
    ids=str,
)
def test_shapes_that_do_not_fit_are_refused(changed):
    name, shape = next(iter(changed.items()))
    with pytest.raises(ValueError, match=r"shapes do not fit|equal tiles"):
        call(inputs(0), "xla", **{name: np.zeros(shape, np.float32)})


def test_an_unknown_implementation_is_refused_and_the_default_is_a_known_one():
    with pytest.raises(ValueError, match=r"'cuda' is not one of .*xla"):
        call(inputs(0), "cuda")
    chosen, passed_over = choose()
    assert chosen in IMPLEMENTATIONS and all(passed_over)
    np.testing.assert_array_equal(call(inputs(0), None), call(inputs(0), chosen))


@pytest.mark.parametrize(
    ("name", "dtype", "said"),
    [
        ("x", jnp.float16, "x is float16, expected float32 or bfloat16"),
        ("w", jnp.bfloat16, "w is bfloat16, expected float32 as x is"),
        ("w", jnp.int8, "w is int8, expected float32 as x is"),
        ("a", jnp.bfloat16, "a is bfloat16, expected float32"),
        ("b", jnp.float16, "b is float16, expected float32"),
        ("scale", jnp.bfloat16, "scale is bfloat16, expected float32"),
    ],
)
def test_a_dtype_that_would_be_promoted_is_refused(name, dtype, said):
    with pytest.raises(ValueError, match=f"^{said}$"):
        call(inputs(0), "xla", **{name: jnp.asarray(inputs(0)[name]).astype(dtype)})


@pytest.mark.parametrize(
    ("slots", "said"),
    [
        (np.array([0, 1, 2, 3, SLOTS], np.int32), f"names slot {SLOTS}, expected 0 to {SLOTS - 1}"),
        (np.array([0, 1, 2, -1, 0], np.int32), f"names slot -1, expected 0 to {SLOTS - 1}"),
        (np.array([[0, 1, 2, 3, 0]], np.int32), "expected int32 [tiles]"),
        (np.zeros(5, np.float32), "tile_slots is float32 (5,), expected int32 [tiles]"),
        (np.zeros(0, np.int32), "15 tokens cannot be cut into 0 equal tiles"),
        (np.zeros(4, np.int32), "15 tokens cannot be cut into 4 equal tiles"),
    ],
    ids=str,
)
def test_rows_of_no_slot_are_refused(slots, said):
    """A constant of a program that is traced, too."""
    arrays = {name: jnp.asarray(value) for name, value in {**inputs(0), "tile_slots": slots}.items()}
    with pytest.raises(ValueError, match=re.escape(said)):
        lora_matmul(**arrays, implementation="xla")
    with pytest.raises(ValueError, match=re.escape(said)):
        jax.eval_shape(lambda x: lora_matmul(**{**arrays, "x": x}, implementation="xla"), arrays["x"])

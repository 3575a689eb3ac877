"""Tests that every implementation of the adapter product inherits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import Dropout, lora_matmul
from pallas_kernels.dropout import keep_mask


class KernelSuite:
    """Inherited by the tests of each implementation, which says its name and how it runs on a CPU."""

    implementation: str

    @staticmethod
    def simulated(multiprocessors):
        raise NotImplementedError

    @pytest.fixture
    def kernels(self, script):
        return script("check_kernels")

    @pytest.mark.parametrize(
        ("multiprocessors", "tile", "tile_slots", "k", "n", "ranks", "drops", "padding"),
        [
            pytest.param(1, 128, (2, 0, 2), 128, (192,), (16, 16, 8), False, 0, id="rows apart, an empty slot"),
            pytest.param(2, 256, (0, 1), 64, (256,), (128, 16), False, 0, id="tiles of two row tiles, rank 128"),
            pytest.param(3, 128, (1, 0, 1), 192, (64,), (16, 8), True, 0, id="dropout, three multiprocessors"),
            pytest.param(2, 128, (1, 0), 128, (128, 64), (16, 8), True, 0, id="two projections, dropout"),
            pytest.param(1, 128, (1, 0), 64, (64, 128, 64), (64, 32), False, 0, id="three too wide for one pass"),
            pytest.param(1, 128, (0, 1, 1, 1), 64, (128,), (16, 16), False, 2, id="padding that is left out"),
            pytest.param(
                3, 128, (0, 1, 1, 1), 64, (128, 64), (16, 16), True, 1, id="padding, two projections, dropout"
            ),
        ],
    )
    def test_it_equals_the_float32_reference(
        self, kernels, multiprocessors, tile, tile_slots, k, n, ranks, drops, padding
    ):
        case = kernels.Case("", tile, tile_slots, k, n, ranks, drops, padding)
        with self.simulated(multiprocessors):
            errors = kernels.check(case, self.implementation, seed=multiprocessors)
        assert max(errors.values()) < kernels.BOUND, errors

    def test_a_neighbours_nan_reaches_neither_my_rows_nor_my_gradients(self):
        draw = np.random.default_rng(0)
        x, dy = (jnp.asarray(draw.standard_normal((256, 64)), jnp.bfloat16) for _ in range(2))
        w = jnp.asarray(draw.standard_normal((64, 64)), jnp.bfloat16)
        healthy = jnp.asarray(draw.standard_normal((2, 64, 16)), jnp.float32)
        b = jnp.asarray(draw.standard_normal((2, 16, 64)), jnp.float32)
        slots = jnp.asarray([1, 0], jnp.int32)

        @jax.jit
        def both(x, a, b, dy):
            def outputs(x, a, b):
                return lora_matmul(x, w, a, b, jnp.ones(2), slots, implementation=self.implementation)

            y, backward = jax.vjp(outputs, x, a, b)
            return y, *backward(dy)

        with self.simulated(1):
            mine, sick = (jax.block_until_ready(both(x, a, b, dy)) for a in (healthy, healthy.at[1].set(jnp.nan)))
        assert bool(jnp.isnan(sick[0][:128].astype(jnp.float32)).all())
        for name, before, after in zip(("y", "dx"), mine[:2], sick[:2], strict=True):
            np.testing.assert_array_equal(after[128:], before[128:], name)
        for name, before, after in zip(("da", "db"), mine[2:], sick[2:], strict=True):
            np.testing.assert_array_equal(after[0], before[0], name)

    def test_it_drops_the_very_features_that_the_masks_say(self):
        draw = np.random.default_rng(1)
        x, dy = (jnp.asarray(draw.uniform(1, 2, (256, 64)), jnp.bfloat16) for _ in range(2))
        w, slots = jnp.zeros((64, 64), jnp.bfloat16), jnp.asarray([1, 0], jnp.int32)
        a, b = (jnp.asarray(draw.uniform(1, 2, shape), jnp.float32) for shape in ((2, 64, 16), (2, 16, 64)))
        keys = jnp.asarray(draw.integers(0, 2**32, 256, np.uint32))
        dropout = Dropout(jnp.asarray([0.1, 0.6], jnp.float32), keys)

        def outputs(x):
            return lora_matmul(x, w, a, b, jnp.ones(2), slots, dropout=dropout, implementation=self.implementation)

        with self.simulated(2):
            dx = jax.block_until_ready(jax.jit(lambda x, dy: jax.vjp(outputs, x)[1](dy)[0])(x, dy))
        rate = jnp.repeat(dropout.rate[slots], 128, total_repeat_length=256)
        np.testing.assert_array_equal(np.asarray(dx != 0), keep_mask(keys, rate, 64))

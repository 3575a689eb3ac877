"""Many optimizers in one step: each slot is AdamW by itself, and slots are strangers to one another."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from altojax.device.optimizer import SCHEDULES, Gradients, Hyper, adamw, empty_hyper, learning_rate, squares
from pallas_kernels.slot_updates import Visited

NUMBERS = [name for name in Hyper._fields if name not in ("rank", "objective")]
SLOTS, STEPS = 4, 8
SHAPES = {"a": (2, SLOTS, 5, 3), "b": (2, SLOTS, 3, 4)}
step_all = jax.jit(adamw)
rates_at = jax.jit(jax.vmap(learning_rate, in_axes=(None, 0)))


def hyper(**changed) -> Hyper:
    """Four trials that agree in nothing."""
    fields = {
        "scale": [2, 1, 4, 0.5],
        "learning_rate": [1e-2, 3e-3, 2e-4, 5e-2],
        "schedule": [SCHEDULES.index(name) for name in ("constant", "linear", "cosine", "warmup_stable_decay")],
        "warmup_steps": [2, 0, 3, 1],
        "decay_steps": [0, 0, 0, 4],
        "total_steps": [8, 10, 9, 8],
        "min_lr_ratio": [0, 0, 0.1, 0],
        "weight_decay": [0, 0.1, 0.01, 0.5],
        "beta1": [0.9, 0.8, 0.95, 0],
        "beta2": [0.999, 0.99, 0.95, 0.9],
        "epsilon": [1e-8, 1e-6, 1e-8, 1e-3],
        "max_grad_norm": [1, 0, 0.3, 100],
    }
    empty = empty_hyper(SLOTS)
    return empty._replace(
        **{name: np.asarray(value, getattr(empty, name).dtype) for name, value in {**fields, **changed}.items()}
    )


def tree(seed: int) -> dict[str, jax.Array]:
    draw = np.random.default_rng(seed)
    return {name: jnp.asarray(draw.standard_normal(shape).astype(np.float32)) for name, shape in SHAPES.items()}


def started(seed: int = 0):
    """Weights, moments and step counts of slots in mid-training."""
    second = {name: jnp.square(leaf) for name, leaf in tree(seed + 2).items()}
    return tree(seed), tree(seed + 1), second, jnp.array([3, 1, 5, 2], jnp.int32)


def step(gradients, settings: Hyper, apply=(True,) * SLOTS, seed: int = 0):
    weights, mu, nu, steps = started(seed)
    return step_all(weights, Gradients(gradients), mu, nu, steps, settings, jnp.asarray(apply))


def of_slot(state, slot: int) -> list[np.ndarray]:
    """Weights, moments and step count of one slot as raw bits."""
    weights, mu, nu, steps = state[:4]
    leaves = [np.asarray(leaf[:, slot]).view(np.uint32) for part in (weights, mu, nu) for leaf in part.values()]
    return [*leaves, np.asarray(steps[slot])]


def same(one, other, slot: int) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(of_slot(one, slot), of_slot(other, slot), strict=True))


def shape_of(name: str, step: int, *, warmup: int, total: int, decay: int = 0, floor: float = 0.0) -> float:
    """What transformers.get_scheduler multiplies the peak by: constant_with_warmup, linear, cosine_with_min_lr, and
    warmup_stable_decay with linear warm-up and cosine decay (num_stable_steps = total - warmup - decay)."""
    if step < warmup:
        return step / max(1, warmup)
    if name == "constant":
        return 1.0
    if name == "linear":
        return max(0.0, (total - step) / max(1, total - warmup))
    if name == "cosine":
        wave = 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
        return max(0.0, wave * (1 - floor) + floor)
    if step < total - decay:
        return 1.0
    if step < total:
        wave = 0.5 * (1 + math.cos(math.pi * (step - (total - decay)) / max(1, decay)))
        return max(0.0, wave * (1 - floor) + floor)
    return floor


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 40),
    st.lists(st.integers(0, 40), min_size=SLOTS, max_size=SLOTS),
    st.integers(0, 40),
    st.sampled_from([0.0, 0.1, 0.5]),
)
def test_schedules_are_those_of_transformers_at_every_step(total, warmups, decay, floor):
    warmups, decay = [min(warmup, total) for warmup in warmups], min(decay, total)
    peak = np.array([1, 0.5, 2e-4, 3], np.float32)
    fields = hyper(
        learning_rate=peak,
        schedule=range(SLOTS),
        warmup_steps=warmups,
        decay_steps=[decay] * SLOTS,
        total_steps=[total] * SLOTS,
        min_lr_ratio=[floor] * SLOTS,
    )
    rates = np.asarray(rates_at(fields, jnp.tile(jnp.arange(41, dtype=jnp.int32)[:, None], (1, SLOTS))))
    for slot, name in enumerate(SCHEDULES):
        wanted = [shape_of(name, t, warmup=warmups[slot], total=total, decay=decay, floor=floor) for t in range(total)]
        np.testing.assert_allclose(rates[:total, slot] / peak[slot], wanted, atol=1e-6)


def test_every_schedule_starts_and_ends_where_it_says():
    fields = hyper(
        learning_rate=[1] * SLOTS, schedule=range(SLOTS), warmup_steps=[4] * SLOTS, total_steps=[20] * SLOTS,
        decay_steps=[5] * SLOTS, min_lr_ratio=[0.25] * SLOTS,
    )  # fmt: skip
    at = {t: np.asarray(learning_rate(fields, jnp.full(SLOTS, t, jnp.int32))) for t in (0, 2, 4, 15, 20)}
    np.testing.assert_array_equal(at[0], 0)
    np.testing.assert_allclose(at[2], 0.5)
    np.testing.assert_allclose(at[4], 1)
    assert at[15][3] == 1
    np.testing.assert_allclose(at[20], [1, 0, 0.25, 0.25], atol=1e-7)


@pytest.mark.parametrize("seed", range(3))
def test_each_slot_is_optax_adamw_alone_however_its_neighbours_are_tuned(seed):
    fields = hyper()
    weights, zeros = tree(seed), {name: jnp.zeros(shape, jnp.float32) for name, shape in SHAPES.items()}
    # Sizes differ by slot, so that some gradients are clipped and others are not.
    sizes = jnp.array([3, 0.1, 0.05, 1], jnp.float32)[None, :, None, None]
    gradients = [{name: leaf * sizes for name, leaf in tree(100 * seed + t).items()} for t in range(STEPS)]
    state = (weights, zeros, zeros, jnp.zeros(SLOTS, jnp.int32))
    for gradient in gradients:
        *state, norm, stepped, _ = step_all(
            state[0], Gradients(gradient), state[1], state[2], state[3], fields, jnp.ones(SLOTS, bool)
        )
        assert np.asarray(stepped).all()
    clipped = np.asarray(norm > fields.max_grad_norm) & (fields.max_grad_norm > 0)
    assert clipped.any() and not clipped.all()
    for slot in range(SLOTS):
        mine = {name: float(getattr(fields, name)[slot]) for name in NUMBERS}
        shape = {"warmup": int(mine["warmup_steps"]), "total": int(mine["total_steps"])}
        rates = jnp.asarray(
            [
                mine["learning_rate"]
                * shape_of(
                    SCHEDULES[int(mine["schedule"])],
                    t,
                    **shape,
                    decay=int(mine["decay_steps"]),
                    floor=mine["min_lr_ratio"],
                )
                for t in range(STEPS)
            ],
            jnp.float32,
        )
        clip = optax.clip_by_global_norm(mine["max_grad_norm"]) if mine["max_grad_norm"] else optax.identity()
        alone = optax.chain(
            clip,
            optax.adamw(
                lambda count, rates=rates: rates[count],
                b1=mine["beta1"],
                b2=mine["beta2"],
                eps=mine["epsilon"],
                weight_decay=mine["weight_decay"],
            ),
        )
        own = {name: leaf[:, slot] for name, leaf in weights.items()}
        memory = alone.init(own)
        update = jax.jit(alone.update)
        for gradient in gradients:
            with jax.numpy_dtype_promotion("standard"):  # optax mixes int32 counts with Python floats
                change, memory = update({name: leaf[:, slot] for name, leaf in gradient.items()}, memory, own)
            own = optax.apply_updates(own, change)
        for name in SHAPES:
            np.testing.assert_allclose(state[0][name][:, slot], own[name], rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("field", [name for name in NUMBERS if name not in ("scale", "dropout")])
def test_a_neighbours_hyper_parameters_do_not_touch_my_adapter(field):
    gradients = {name: 3 * leaf for name, leaf in tree(9).items()}
    # All slots at step 3 of 8 with warm-up behind them, decaying, clipped: every field matters.
    common = {
        "schedule": [3] * SLOTS, "warmup_steps": [1] * SLOTS, "total_steps": [8] * SLOTS, "decay_steps": [8] * SLOTS,
        "min_lr_ratio": [0.2] * SLOTS, "max_grad_norm": [1] * SLOTS, "beta1": [0.9] * SLOTS,
    }  # fmt: skip
    other = {
        "learning_rate": 0.5, "schedule": 1, "warmup_steps": 7, "decay_steps": 5, "total_steps": 100,
        "min_lr_ratio": 0.9, "weight_decay": 7.0, "beta1": 0.1, "beta2": 0.2, "epsilon": 1.0, "max_grad_norm": 0.1,
    }  # fmt: skip
    before = hyper(**common)
    values = np.array(getattr(before, field))
    values[1] = other[field]
    one, two = step(gradients, before), step(gradients, before._replace(**{field: values}))
    assert [same(one, two, slot) for slot in range(SLOTS)] == [True, False, True, True]


def test_a_neighbours_gradient_does_not_touch_my_adapter():
    gradients = tree(9)
    louder = {name: leaf.at[:, 1].multiply(-3) for name, leaf in gradients.items()}
    one, two = step(gradients, hyper()), step(louder, hyper())
    assert [same(one, two, slot) for slot in range(SLOTS)] == [True, False, True, True]


def test_a_slot_that_does_not_apply_stays_bit_for_bit():
    before = started()
    after = step(tree(9), hyper(), apply=(True, False, True, False))
    assert [same(before, after, slot) for slot in range(SLOTS)] == [False, True, False, True]
    np.testing.assert_array_equal(after[3], [4, 1, 6, 2])
    np.testing.assert_array_equal(after[5], [True, False, True, False])


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_non_finite_gradient_skips_its_own_slot_alone(poison):
    gradients = tree(9)
    sick = {**gradients, "b": gradients["b"].at[1, 2, 0, 3].set(poison)}
    before, healthy, after = started(), step(gradients, hyper()), step(sick, hyper())
    assert same(before, after, 2)
    assert all(same(healthy, after, slot) for slot in (0, 1, 3))
    np.testing.assert_array_equal(after[5], [True, True, False, True])
    np.testing.assert_array_equal(np.isfinite(after[4]), [True, True, False, True])


def test_the_norm_is_of_the_slots_own_arrays():
    gradients = tree(4)
    wanted = [
        math.sqrt(sum(float(np.square(np.asarray(leaf[:, slot], np.float64)).sum()) for leaf in gradients.values()))
        for slot in range(SLOTS)
    ]
    part = Visited(jnp.ones(SLOTS, bool), jnp.full(SLOTS, 3, jnp.int32))
    np.testing.assert_allclose(np.sqrt(squares(Gradients(gradients), part)), wanted, rtol=1e-6)


def test_the_unused_columns_of_a_small_rank_stay_zero():
    fields, (weights, mu, nu, steps), gradients = hyper(), started(), tree(9)

    def cut(part):
        return {"a": part["a"].at[:, 1, :, 2:].set(0), "b": part["b"].at[:, 1, 2:].set(0)}

    after = step_all(cut(weights), Gradients(cut(gradients)), cut(mu), cut(nu), steps, fields, jnp.ones(SLOTS, bool))
    assert not np.asarray(after[0]["a"][:, 1, :, 2:]).any() and not np.asarray(after[0]["b"][:, 1, 2:]).any()
    assert np.asarray(after[0]["a"][:, 1, :, :2]).all()

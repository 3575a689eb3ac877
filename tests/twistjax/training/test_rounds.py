"""Rounds on a mesh: nothing crosses it but one mean, and the result does not depend on it."""

import re
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxlm.families.registry import random_config
from jaxlm.models.functional import Functional, weights_by_path
from jaxlm.models.transformer import Transformer
from twistjax.training.gather_scatter import add, corrected, gather, holder_mean, holders
from twistjax.training.local_training import Adam, Moments, Worker, decays, text_likeliest, text_nll
from twistjax.training.rounds import Central, Rounds, Wave, needs, subnet_mesh
from twistjax.training.units import Kept, units_of

pytestmark = pytest.mark.slow

CONFIG = random_config("qwen2")
STEPS, WORKERS, ROWS, LENGTH, RATE = 3, 4, 2, 16, 1e-3
ADAM = Adam(0.9, 0.999, 1e-8, 0.1, 1.0)
COLLECTIVES = r"(all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter|collective-broadcast)(-start)?\("


@cache
def start():
    model = Transformer(CONFIG, dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    return weights_by_path(model, jnp.float32)


def text(seed=0, workers=WORKERS):
    tokens = np.random.default_rng(seed).integers(0, 256, (STEPS, workers, ROWS, LENGTH)).astype(np.int32)
    targets = np.ones_like(tokens, bool)
    targets[..., 0] = False
    targets[0, 0, 0, 5:] = False
    return tokens, targets


def rounds_of(kappas, at_once, devices, protected=(0, 0), correction="inverse"):
    units = units_of(CONFIG, kappas, 16, protected)
    workers = {
        kappa: [Worker(Functional(units.subnetwork(kappa)), units, kappa, correction, ADAM)] for kappa in set(kappas)
    }
    return Rounds(units, workers, subnet_mesh(at_once, jax.devices()[:devices]))


def waves_of(rounds, kappas, at_once, seed=0):
    hands = rounds.units.deal(jax.random.key(seed), kappas)
    tokens, targets = text(seed, len(kappas))
    return [
        Wave(
            kappas[first],
            jax.tree.map(lambda *parts: jnp.stack(parts), *hands[first : first + at_once]),
            tokens[:, first : first + at_once],
            targets[:, first : first + at_once],
        )
        for first in range(0, len(kappas), at_once)
    ]


def central(carry):
    fresh = [jax.tree.map(jnp.zeros_like, start()) for _ in range(2)]
    return Central(jax.tree.map(jnp.copy, start()), Moments(*fresh) if carry else None)


def run(kappas, at_once, devices, carry=False, count=1, protected=(0, 0)):
    rounds = rounds_of(kappas, at_once, devices, protected)
    state, losses = rounds.place(central(carry)), []
    for number in range(count):
        waves = waves_of(rounds, kappas, at_once, number)
        state, loss = rounds.run(state, waves, np.full(STEPS, RATE, np.float32), number * STEPS if carry else 0)
        losses.append(loss)
    return rounds, jax.device_get(state), np.stack(losses)


@cache
def plain_steps(units, kappa):
    """What begins a worker's training and what goes on with it, compiled."""

    @jax.jit
    def begin(kept):
        weights = gather(start(), kept, units)
        return weights, optimizer_of(weights).init(weights)

    @jax.jit
    def step(weights, state, tokens, targets):
        model = Functional(units.subnetwork(kappa))

        def loss(weights):
            own = corrected(weights, units, kappa, "inverse", full=False)
            total, count = text_nll(model, own, tokens, targets)
            return total / count

        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer_of(weights).update(jax.grad(loss)(weights), state, weights)
        return optax.apply_updates(weights, updates), state

    return begin, step


def plainly(kappas, protected=(0, 0)):
    """One round, worker by worker, step by step, with optax's own AdamW on the subnetworks."""
    units = units_of(CONFIG, kappas, 16, protected)
    tokens, targets = text(0, len(kappas))
    total, held = jax.tree.map(jnp.zeros_like, start()), None
    for worker, (kappa, kept) in enumerate(zip(kappas, units.deal(jax.random.key(0), kappas), strict=True)):
        begin, step = plain_steps(units, kappa)
        weights, state = begin(kept)
        for number in range(STEPS):
            weights, state = step(weights, state, tokens[number, worker], targets[number, worker])
        total = add(total, weights, kept, units)
        own = holders(jax.tree.map(lambda part: part[None], kept), units)
        held = own if held is None else jax.tree.map(jnp.add, held, own)
    return holder_mean(start(), total, held, len(kappas))


def optimizer_of(weights):
    mask = {path: decays(path) for path in weights}
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(RATE, 0.9, 0.999, 1e-8, weight_decay=0.1, mask=mask))


def assert_close(ours, theirs, atol):
    for path, value in theirs.items():
        np.testing.assert_allclose(ours[path], value, atol=atol, rtol=0, err_msg=path)


@pytest.mark.parametrize(("kappas", "protected"), [([0.5, 1.0, 0.5], (0, 0)), ([0.5] * 2, (1, 1))])
def test_a_round_is_every_workers_own_training_and_the_mean_of_holders(kappas, protected):
    _, state, _ = run(kappas, 1, 1, protected=protected)
    assert_close(state.weights, plainly(kappas, protected), atol=STEPS * RATE * 2e-2)


@cache
def at_once_on_four_devices(carry):
    return run([0.5] * WORKERS, WORKERS, 4, carry, count=2)


@pytest.mark.parametrize(
    ("at_once", "devices", "carry"),
    [(2, 1, True), (2, 2, False)],
)
def test_waves_and_devices_do_not_change_what_comes_out(at_once, devices, carry):
    _, one, losses = at_once_on_four_devices(carry)
    _, other, same = run([0.5] * WORKERS, at_once, devices, carry, count=2)
    np.testing.assert_allclose(losses, same, atol=1e-4)
    # Where a gradient is all rounding, Adam turns its sign into a whole step; that is the largest difference there is.
    assert_close(other.weights, one.weights, atol=2 * STEPS * RATE * 0.5)
    drift = [np.abs(other.weights[path] - value).mean() for path, value in one.weights.items()]
    assert max(drift) < 1e-5


def test_nothing_crosses_the_mesh_in_a_wave_and_one_reduction_ends_a_round():
    rounds, _, _ = at_once_on_four_devices(True)
    assert rounds.mesh.shape == {"subnet": 4}
    assert not re.search(COLLECTIVES, rounds.programs["kappa 0.5"].as_text())
    mean = rounds.programs["mean"].as_text()
    assert len(re.findall(COLLECTIVES, mean)) == len(re.findall(r"all-reduce\(", mean)) == 1


def test_a_round_moves_the_bytes_of_one_step_of_data_parallelism():
    """All weights once in float32, and the counts of holders; data parallelism moves the weights' gradients a step."""
    rounds, state, _ = at_once_on_four_devices(False)
    line = next(line for line in rounds.programs["mean"].as_text().splitlines() if "all-reduce(" in line)
    moved = sum(
        4 * int(np.prod([int(size) for size in shape.split(",") if size] or [1]))
        for shape in re.findall(r"f32\[([\d,]*)\]", line.partition("all-reduce(")[0])
    )
    weights = 4 * sum(value.size for value in state.weights.values())
    counts = sum(4 * leaf.size for leaf in jax.tree.leaves(holders(_stacked(rounds.units), rounds.units)))
    assert moved == weights + counts < 1.01 * weights + counts


def _stacked(units) -> Kept:
    return jax.tree.map(lambda part: part[None], units.draw(jax.random.key(0), 1.0))


def test_the_full_model_of_the_round_teaches_as_what_it_expects_given_beforehand_does():
    """Workers of half learn of it, and not of the text; both ways of giving it to them end in the same weights."""
    units = units_of(CONFIG, [0.5], 16)
    expects = jax.jit(lambda weights, tokens: text_likeliest(Functional(CONFIG), weights, tokens))
    states = []
    for full in (Functional(CONFIG), None):
        worker = Worker(Functional(units.subnetwork(0.5)), units, 0.5, "inverse", ADAM, 1.0, full)
        rounds = Rounds(units, {0.5: [worker]}, subnet_mesh(2, jax.devices()[:1]))
        waves = waves_of(rounds, [0.5, 0.5], 2)
        if full is None:
            found = expects(start(), waves[0].tokens.reshape(-1, LENGTH))
            soft = jax.tree.map(lambda part: np.asarray(part).reshape(STEPS, 2, ROWS, LENGTH, -1), found)
            waves = [wave._replace(soft=soft) for wave in waves]
        state, losses = rounds.run(rounds.place(central(False)), waves, np.full(STEPS, RATE, np.float32), 0)
        states.append((jax.device_get(state.weights), losses))
    (ours, own), (theirs, given) = states
    np.testing.assert_allclose(own, given, atol=1e-5)
    assert_close(ours, theirs, atol=2 * STEPS * RATE * 0.5)
    assert max(np.abs(ours[path] - value).mean() for path, value in theirs.items()) < 1e-5
    assert (own[0] > 0).all() and own.max() < 2.0, "a divergence, not the text's loss"


def test_a_program_is_compiled_once_for_a_kappa_whatever_is_dealt():
    rounds, _, _ = run([0.5, 1.0, 0.5, 1.0], 1, 1, count=3)
    assert sorted(rounds.programs) == ["kappa 0.5", "kappa 1", "mean", "zeros"]


def test_the_first_way_that_fits_is_compiled_and_where_none_does_the_last():
    units = units_of(CONFIG, [1.0], 16)
    ways = [Worker(Functional(CONFIG, remat=remat), units, 1.0, "none", ADAM) for remat in ("none", "full")]

    def needed(workers, limit=None):
        rounds = Rounds(units, {1.0: workers}, subnet_mesh(2, jax.devices()[:1]), limit)
        rounds.run(rounds.place(central(False)), waves_of(rounds, [1.0, 1.0], 2), np.full(STEPS, RATE, np.float32), 0)
        return needs(rounds.programs["kappa 1"])

    none, full = needed(ways[:1]), needed(ways[1:])
    assert full < 0.999 * none
    assert [needed(ways, limit) for limit in (2 * none, int(0.999 * none), 0)] == [none, full, full]


def test_carried_moments_go_on_where_fresh_ones_begin_anew():
    (_, carried, _), (_, fresh, _) = at_once_on_four_devices(True), at_once_on_four_devices(False)
    assert carried.moments is not None and fresh.moments is None
    assert max(np.abs(value).max() for value in carried.moments.nu.values()) > 0
    assert any(np.abs(carried.weights[path] - value).max() > 1e-5 for path, value in fresh.weights.items())


@pytest.mark.parametrize(("workers", "devices", "used"), [(4, 8, 4), (6, 4, 3), (1, 8, 1), (8, 8, 8), (7, 4, 1)])
def test_as_many_devices_are_used_as_share_a_wave_evenly(workers, devices, used):
    assert subnet_mesh(workers, jax.devices()[:devices]).shape["subnet"] == used

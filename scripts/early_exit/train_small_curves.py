"""Trains small character models on any text, hundreds of configurations at once, and records their learning curves.

    python scripts/early_exit/train_small_curves.py out.csv BASE.txt TEXT.txt [TEXT.txt ...]

For each TEXT two tasks: ``NAME-lora`` adapts a model of BASE by low-rank adapters, ``NAME-full`` trains from scratch.
Each has 4 groups of 60 random configurations (learning rate, batch size, rank, schedule, warm-up, weight decay), 1,000
steps and 50 evaluations, in the columns that ``altojax replay`` reads. The schedules make the curves cross, as they do
in fine-tuning. About 40 s a task on an idle core; the same command writes the same losses on the same machine.
"""

from jaxrun.process.script import run_script

import csv
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrun.config.script_options import ScriptOptions

WINDOW, EMBEDDING, HIDDEN, VOCABULARY, MAX_RANK, MAX_BATCH = 16, 16, 128, 96, 32, 16
STEPS, EVALUATIONS, TRIALS, GROUP = 1000, 50, 240, 60
BASE_CHARACTERS, VALIDATION_CHARACTERS, VALIDATION_WINDOWS = 400_000, 40_000, 1024
TRAIN_CHARACTERS = (20_000, 100_000, 200_000)
"""Of the first text, the second, the third, then again."""
SIZES = {"a": (WINDOW * EMBEDDING, HIDDEN), "b": (HIDDEN, HIDDEN), "o": (HIDDEN, VOCABULARY)}

Tree = Any


def read(path: Path, count: int) -> jax.Array:
    """The first bytes of a file as int32 [count] below `VOCABULARY`."""
    return jnp.clip(jnp.asarray(np.frombuffer(path.read_bytes()[:count], np.uint8).astype(np.int32)) - 32, 0, 95)


def new_model(key: jax.Array) -> Tree:
    """Embedding [V, E] and three matrices [in, out]."""
    keys = jax.random.split(key, len(SIZES) + 1)
    layers = {n: jax.random.normal(k, s) / np.sqrt(s[0]) for k, (n, s) in zip(keys[1:], SIZES.items(), strict=True)}
    return {"e": jax.random.normal(keys[0], (VOCABULARY, EMBEDDING)), **layers, "o": 0.3 * layers["o"]}


def new_adapters(key: jax.Array) -> Tree:
    """A [in, MAX_RANK] and B = 0 [MAX_RANK, out] for each matrix."""
    keys = jax.random.split(key, len(SIZES))
    return {
        n: (jax.random.normal(k, (s[0], MAX_RANK)) / np.sqrt(s[0]), jnp.zeros((MAX_RANK, s[1])))
        for k, (n, s) in zip(keys, SIZES.items(), strict=True)
    }


def loss_of(weights: Tree, base: Tree | None, config: Tree, text: jax.Array, starts: jax.Array) -> jax.Array:
    """Negative log-likelihood of the character after each window, float32 [windows]."""
    live = (jnp.arange(MAX_RANK) < config["rank"]).astype(jnp.float32)

    def product(name: str, x: jax.Array) -> jax.Array:
        if base is None:
            return x @ weights[name]
        a, b = weights[name]
        return x @ base[name] + 2.0 * ((x @ a) * live[None]) @ b

    windows = text[starts[:, None] + jnp.arange(WINDOW)[None]]
    x = (weights if base is None else base)["e"][windows].reshape(len(starts), -1)
    x = jax.nn.relu(product("a", x))
    x = x + jax.nn.relu(product("b", x))
    chances = jax.nn.log_softmax(product("o", x))
    return -jnp.take_along_axis(chances, text[starts + WINDOW][:, None], axis=1)[:, 0]


def learning_rate(config: Tree, t: jax.Array) -> jax.Array:
    """Of step t = 1, 2, …: linear warm-up, then constant, linear or cosine."""
    warmup = config["warmup"] * STEPS
    done = jnp.clip((t - 1.0 - warmup) / (STEPS - warmup), 0.0, 1.0)
    shape = jnp.stack([jnp.ones_like(done), 1.0 - done, 0.5 * (1.0 + jnp.cos(jnp.pi * done))])[config["schedule"]]
    return config["learning_rate"] * jnp.minimum(t / jnp.maximum(warmup, 1.0), 1.0) * shape


@partial(jax.jit, static_argnames="steps")
def advance(state: Tree, first: jax.Array, configs: Tree, base: Tree | None, text: jax.Array, steps: int) -> Tree:
    """Takes AdamW steps of every trial; returns the states and each trial's mean training loss [trials]."""

    def one(state: Tree, config: Tree) -> Tree:
        counted = (jnp.arange(MAX_BATCH) < config["batch"]).astype(jnp.float32)

        def batch_loss(weights: Tree, step: jax.Array) -> jax.Array:
            key = jax.random.fold_in(jax.random.key(config["seed"]), step)
            starts = jax.random.randint(key, (MAX_BATCH,), 0, text.shape[0] - WINDOW)
            return (loss_of(weights, base, config, text, starts) * counted).sum() / counted.sum()

        def body(state: Tree, step: jax.Array) -> Tree:
            weights, mean, square = state
            loss, gradient = jax.value_and_grad(batch_loss)(weights, step)
            t = step.astype(jnp.float32) + 1.0
            rate = learning_rate(config, t)
            mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, mean, gradient)
            square = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, square, gradient)
            weights = jax.tree.map(
                lambda w, m, v: (
                    w * (1.0 - rate * config["weight_decay"])
                    - rate * (m / (1.0 - 0.9**t)) / (jnp.sqrt(v / (1.0 - 0.999**t)) + 1e-8)
                ),
                weights,
                mean,
                square,
            )
            return (weights, mean, square), loss

        state, losses = jax.lax.scan(body, state, first + jnp.arange(steps))
        return state, losses.mean()

    return jax.vmap(one)(state, configs)


@jax.jit
def validate(weights: Tree, configs: Tree, base: Tree | None, text: jax.Array) -> jax.Array:
    """Validation loss of every trial on the same windows, float32 [trials]."""
    starts = jnp.arange(VALIDATION_WINDOWS) * ((text.shape[0] - WINDOW) // VALIDATION_WINDOWS)
    return jax.lax.map(lambda trial: loss_of(trial[0], base, trial[1], text, starts).mean(), (weights, configs))


def train(weights: Tree, configs: Tree, base: Tree | None, text: jax.Array, held_out: jax.Array) -> tuple[Tree, Tree]:
    """Trains all trials; returns their weights and the losses [evaluation][train, validation][trials]."""
    zeros = jax.tree.map(jnp.zeros_like, weights)
    state, losses = (weights, zeros, zeros), []
    for done in range(0, STEPS, STEPS // EVALUATIONS):
        state, train_loss = advance(state, jnp.int32(done), configs, base, text, STEPS // EVALUATIONS)
        losses.append((np.asarray(train_loss), np.asarray(validate(state[0], configs, base, held_out))))
    return state[0], losses


def draw(count: int, seed: int) -> Tree:
    """Random configurations; each entry an array [count]."""
    random = np.random.default_rng(seed)
    return {
        "learning_rate": jnp.asarray(10 ** random.uniform(-4.0, -0.5, count), jnp.float32),
        "batch": jnp.asarray(random.choice([1, 4, 16], count)),
        "rank": jnp.asarray(random.choice([2, 8, 32], count)),
        "schedule": jnp.asarray(random.integers(0, 3, count)),
        "warmup": jnp.asarray(random.choice([0.0, 0.1], count), jnp.float32),
        "weight_decay": jnp.asarray(random.choice([0.0, 0.1], count), jnp.float32),
        "seed": jnp.asarray(random.integers(0, 1 << 30, count)),
    }


def main() -> None:
    """Trains the base, then every task, and writes the curves."""
    parser = ScriptOptions(__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("base", type=Path)
    parser.add_argument("texts", type=Path, nargs="+")
    args = parser.read()
    plain = {**{name: values[:1] for name, values in draw(1, 0).items()}, "learning_rate": jnp.full(1, 2e-3)}
    plain |= {"batch": jnp.full(1, MAX_BATCH), "schedule": jnp.full(1, 2)}
    text = read(args.base, BASE_CHARACTERS + VALIDATION_CHARACTERS)
    weights = jax.vmap(new_model)(jax.random.split(jax.random.key(0), 1))
    for seed in range(4):
        now = plain | {"seed": jnp.full(1, seed)}
        weights, losses = train(weights, now, None, text[:BASE_CHARACTERS], text[BASE_CHARACTERS:])
    print(f"base {args.base.stem}: validation loss {losses[-1][1][0]:.3f}")
    base = jax.tree.map(lambda array: array[0], weights)
    with args.out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["group", "trial", "step", "max_steps", "train_loss", "val_loss"])
        for number, path in enumerate(args.texts):
            size = TRAIN_CHARACTERS[number % len(TRAIN_CHARACTERS)]
            text = read(path, size + VALIDATION_CHARACTERS)
            for kind, start, frozen in (("lora", new_adapters, base), ("full", new_model, None)):
                seed = 2 * number + (kind == "full")
                weights = jax.vmap(start)(jax.random.split(jax.random.key(seed + 1), TRIALS))
                _, losses = train(weights, draw(TRIALS, seed + 1), frozen, text[:size], text[size:])
                best = np.nanmin(np.stack([validation for _, validation in losses]), axis=0)
                print(f"{path.stem}-{kind}: best {np.nanmin(best):.3f}, median {np.nanmedian(best):.3f}", flush=True)
                for trial in range(TRIALS):
                    for evaluation, pair in enumerate(losses, start=1):
                        group, step = f"{path.stem}-{kind}-{trial // GROUP}", evaluation * (STEPS // EVALUATIONS)
                        writer.writerow([group, trial, step, STEPS, *(f"{loss[trial]:.6g}" for loss in pair)])


if __name__ == "__main__":
    raise SystemExit(run_script(main))

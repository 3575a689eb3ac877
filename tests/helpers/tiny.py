"""A tiny executor and heterogeneous trials for the tests of the laws."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from altojax.device import executor as executor_module
from altojax.device.batch import Part, Stream, next_part
from altojax.device.batch_shapes import Shape
from altojax.device.executor import Executor
from altojax.device.objectives.cross_entropy import CROSS_ENTROPY
from altojax.device.objectives.objective import Objective
from altojax.device.objectives.rows import TextRow
from altojax.device.programs import Step
from altojax.device.slots import Snapshot, empty_snapshot, fresh
from altojax.device.step import StaticPlan
from jaxlm.data.batching.row_layout import RowGeometry
from jaxlm.devices.mesh import make_layout
from jaxlm.families.config import ModelConfig
from jaxlm.families.names import adaptable, projections, weights
from jaxlm.families.registry import random_config
from jaxlm.models.computation import Remat
from jaxlm.models.transformer import Transformer
from pallas_kernels.moments import Kind

CONFIG = replace(random_config("llama"), num_layers=2, vocab_size=64, num_heads=8, num_kv_heads=8, head_dim=8)
PROJECTIONS = {
    key: one
    for key, one in projections(CONFIG).items()
    if key in ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")
}
HYPER = {
    "learning_rate": 1e-2,
    "schedule": 2,
    "warmup_steps": 2,
    "decay_steps": 0,
    "total_steps": 12,
    "min_lr_ratio": 0.1,
    "weight_decay": 0.0,
    "beta1": 0.9,
    "beta2": 0.999,
    "epsilon": 1e-8,
    "max_grad_norm": 1.0,
    "scale": 2.0,
    "dropout": 0.0,
}


def make_rows(count: int, seed: int = 0) -> list[TextRow]:
    """Rows of 10 to 30 random tokens, the last 8 or 9 of each targets: as many rows are mostly of one shape."""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        length, targets = int(random.integers(10, 31)), int(random.integers(8, 10))
        rows.append(TextRow(random.integers(0, 64, length).astype(np.int32), np.arange(length) >= length - targets))
    return rows


ROWS = make_rows(24)
TINY_ROWS = RowGeometry(32, 8, 4)
SCANNED = Remat("none", scan_layers=True)
SMALL, LARGE = Shape(1, 32, 32), Shape(8, 32, 128)
"""What any batch of the laws' tests fits in: a text alone, which leaves most slots out of a step, and several."""


def make_executor(
    slots: int,
    rank: int,
    *,
    accumulates: bool = True,
    mesh: dict[str, int] | None = None,
    config: ModelConfig = CONFIG,
    remat: Remat = SCANNED,
    objective: Objective = CROSS_ENTROPY,
    averages: tuple[float, ...] = (8.0,),
    optimizer_state: Kind = "float32",
) -> Executor:
    """The same base each time, with `slots` empty slots, on one device or on a mesh."""
    model = Transformer(config, dtype=jnp.float32, param_dtype=jnp.float32, **remat._asdict(), rngs=nnx.Rngs(0))
    inside = {*PROJECTIONS, "conv.in_proj", "conv.out_proj"}
    adapted = {key: one for key, one in adaptable(config).items() if one.inside in inside or one.experts}
    kinds = {"accumulates": accumulates, "drops": True, "objective": objective, "averages": averages}
    kinds |= {"optimizer_state": optimizer_state}
    plan = StaticPlan(slots, rank, adapted, TINY_ROWS, **kinds)
    if mesh is None:
        return Executor(model, plan)
    layout = make_layout(mesh, config)
    graph, state = nnx.split(model)
    flat = dict(nnx.to_flat_state(state))
    for weight in weights(config):
        path = tuple(weight.path.split("."))
        flat[path] = flat[path].replace(jax.device_put(flat[path].get_value(), layout.placement(weight)))
    return Executor(nnx.merge(graph, nnx.from_flat_state(flat)), plan, layout=layout)


def of_few_shapes(executor: Executor) -> Executor:
    """The executor, whose batches are all SMALL or LARGE: no test compiles a step for every number of rows."""
    shapes = [shape for shape in (SMALL, LARGE) if shape.rows >= executor.plan.objective.group]

    def shape_of(step: Step, parts: Sequence[Part]) -> Shape:
        return next(shape for shape in shapes if shape.holds(executor.programs.need(parts)))

    executor.programs.shape_of = shape_of
    return executor


def shared_executor(
    slots: int, rank: int, mesh: dict[str, int] | None = None, objective: Objective = CROSS_ENTROPY
) -> Executor:
    """An executor of few shapes with empty slots that keeps what it has compiled for the tests that follow."""
    executor = _kept(slots, rank, tuple((mesh or {}).items()), objective)
    for slot in range(slots):
        executor.clear(slot)
    return executor


@cache
def _kept(slots: int, rank: int, mesh: tuple[tuple[str, int], ...], objective: Objective) -> Executor:
    # Chunks of the head that are few targets, so that some are padding alone.
    with mock.patch.object(executor_module, "head_chunk_of", lambda config: 8):
        return of_few_shapes(make_executor(slots, rank, mesh=dict(mesh) or None, objective=objective))


def forget_executors() -> None:
    """Drops the executors that were kept, with what they have compiled."""
    _kept.cache_clear()


@dataclass
class Runner:
    """A trial that trains itself, wherever it is put."""

    seed: int
    rank: int
    batch_size: int
    accumulation: int
    keys: tuple[str, ...]
    hyper: dict[str, float]
    snapshot: Snapshot
    step: int = 0
    micro: int = 0
    slot: int = -1

    @property
    def stream(self) -> Stream:
        return Stream(ROWS, 3, 400, self.batch_size, self.accumulation)

    def enter(self, executor: Executor, slot: int) -> None:
        executor.put(slot, self.snapshot, self.hyper)
        self.slot = slot

    def leave(self, executor: Executor) -> None:
        self.snapshot = executor.take(self.slot, self.rank, self.keys)
        executor.clear(self.slot)
        self.slot = -1


def make_runner(
    seed: int,
    rank: int,
    batch_size: int,
    *,
    accumulation: int = 1,
    keys: tuple[str, ...] = (),
    config: ModelConfig = CONFIG,
    **hyper: float,
) -> Runner:
    """A fresh trial; adapts every projection unless `keys` names some."""
    keys, known = keys or tuple(PROJECTIONS), adaptable(config)
    sites = {key: known[key] for key in keys}
    layers = {key: one.layers for key, one in sites.items()}
    snapshot = empty_snapshot(sites, rank, accumulates=True, averages=1)
    for key, pair in fresh(sites, layers, rank, seed=seed)["adapters"].items():
        snapshot["adapters"][key] |= pair
    return Runner(seed, rank, batch_size, accumulation, keys, {**HYPER, **hyper}, snapshot)


def heterogeneous() -> list[Runner]:
    """Four trials that differ in everything a trial can differ in."""
    return [
        make_runner(1, 4, 2, dropout=0.1, weight_decay=0.1),
        make_runner(2, 8, 1, learning_rate=3e-3, schedule=1, scale=4.0),
        make_runner(3, 2, 3, dropout=0.5, keys=("self_attn.q_proj", "mlp.down_proj"), weight_decay=0.01),
        make_runner(4, 3, 1, accumulation=3, max_grad_norm=0.05, beta2=0.95, schedule=3, decay_steps=4),
    ]


def tick(executor: Executor, runners: list[Runner]) -> list[float]:
    """One micro-batch of every runner that is in a slot; returns their losses."""
    here = [one for one in runners if one.slot >= 0]
    parts = [next_part(one.slot, one.stream, one.seed, one.step, one.micro) for one in here]
    report = executor.train(parts)
    for one, part in zip(here, parts, strict=True):
        one.micro = 0 if part.apply else one.micro + 1
        one.step += int(part.apply)
    losses = np.asarray(report.loss)
    return [float(losses[one.slot]) for one in here]


def difference(one: object, other: object) -> float:
    """Largest absolute difference between two trees of arrays."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs)

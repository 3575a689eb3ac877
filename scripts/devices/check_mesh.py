"""Checks kernels, steps and laws on the meshes of this machine's first two GPUs, and how fast they are.

    python scripts/devices/check_mesh.py [--parts kernels laws step profile] [--model llama-3.2-1b] [--out FOLDER]

`scripts/devices/check_mesh_runs.py` does the same for whole runs. Each part is a process of its own and takes minutes:

kernels   the cases of check_kernels inside a full-manual shard_map, other inputs on either GPU, against float32
laws      trials together on the meshes adapter 2 (base sharded, base whole), tensor 2 and data 2 against each alone on
          one GPU: float32 with plain XLA, bfloat16 with every kernel; the same once more, and beside a poisoned trial:
          every bit must stay
step      tokens a second of 1 and 2 GPUs with as much work each, what `plan_capacity` predicts of it, and memory, with
          what a run predicts of that
profile   a traced step of the mesh adapter 2: how long NCCL runs, and how much of that nothing hides

Works on two devices of a CPU too (JAX_NUM_CPU_DEVICES=2), with `--model tiny`. Ends with 1 if a check fails.
"""

from jaxrun.process.script import run_script

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from check_kernels import BOUND, CASES, draw, names, outputs_and_gradients, reference
from full_slots import HYPER, SHAPES, fill, kernels_here, kernels_of, ms_a_step, new_adapter, random_rows
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from rich.console import Console
from rich.table import Table

from altojax.device.batch import Stream, next_part, rows_here
from altojax.device.executor import Executor
from altojax.device.footprint import footprint
from altojax.device.step import StaticPlan
from altojax.estimates.memory_model import base_of, moved_bytes
from altojax.estimates.speed_model import AdapterLoad, gathered_step_s
from jaxlm.devices.mesh import make_layout
from jaxlm.families.config import ModelConfig
from jaxlm.families.names import projections
from jaxlm.families.registry import random_config
from jaxlm.files.hf_config import to_hf
from jaxlm.files.weights import load_model
from jaxlm.models.computation import Remat
from jaxrun.config.script_options import ScriptOptions

SHARDED, WHOLE = {"adapter": 2, "shard_base": True}, {"adapter": 2, "shard_base": False}
MESHES: tuple[dict[str, Any], ...] = (SHARDED, WHOLE, {"tensor": 2}, {"adapter": 1, "data": 2})
SHOWN = ("eight slots, dropout", "rows apart, empty slots", "mixed ranks", "three projections, dropout", "long k")
SMALL = ModelConfig(
    family="llama", vocab_size=1024, hidden_size=512, intermediate_size=1024, num_layers=4, num_heads=8,
    num_kv_heads=4, head_dim=64, max_position=1024,
)  # fmt: skip
STEPS: dict[str, dict[str, Any] | None] = {
    "step-one": None,
    "step-sharded": SHARDED,
    "step-whole": WHOLE,
    "step-tensor": {"tensor": 2},
}
"""The part `step`, each in a process of its own, whose peak of memory is its own."""
SAME = {"loss": 5e-7, "adapter": 2e-5}
"""Largest differences of float32 sums in another order, as in the tests: of losses as a share, of adapters."""


class Found(NamedTuple):
    """A line of the last table: what was checked, what came out, and whether it is as it should be."""

    what: str
    value: str
    fine: bool = True


def main() -> int:
    """Runs the parts, each in a process of its own, and prints one table."""
    parts: dict[str, Any] = {"kernels": kernels, "laws": laws, "step": step, "profile": profile}
    parser = ScriptOptions(__doc__)
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--model", choices=[*SHAPES, "tiny"], default="llama-3.2-1b")
    parser.add_argument("--slots", type=int, default=8, help="of each GPU, in step and profile")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--only", nargs="+", help="only these: float32, mosaic_gpu, triton, xla (bfloat16)")
    parser.add_argument("--out", type=Path, default=Path("runs/check-mesh"))
    parser.add_argument("--one", choices=[*parts, *STEPS], help=argparse.SUPPRESS)
    options = parser.read()
    options.out.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_default_matmul_precision", "highest")  # of float32, which would else be rounded to tf32
    if options.one:
        found = step(options, STEPS[options.one]) if options.one in STEPS else parts[options.one](options)
        found.append(Found("on", f"{jax.device_count()} × {jax.devices()[0].device_kind}, jax {jax.__version__}"))
        (options.out / f"{options.one}.json").write_text(json.dumps(found))
        return 0
    table = Table("part", "what", "found", "")  # no device is asked here: the parts need their memory
    fine = True
    for part in [one for wanted in options.parts for one in (STEPS if wanted == "step" else (wanted,))]:
        begun, result = time.perf_counter(), options.out / f"{part}.json"
        result.unlink(missing_ok=True)
        code = subprocess.run([sys.executable, *sys.argv, "--one", part], check=False).returncode
        lines = [Found(*one) for one in json.loads(result.read_text())] if result.exists() else []
        lines.append(Found("seconds, exit code", f"{time.perf_counter() - begun:.0f}, {code}", code == 0))
        for one in lines:
            table.add_row(part, one.what, one.value, "" if one.fine else "WRONG")
        fine &= all(one.fine for one in lines)
    Console(width=130).print(table)
    return 0 if fine else 1


def kernels(options: argparse.Namespace) -> list[Found]:
    """Every kernel of this machine inside a shard_map over two devices, each with inputs of its own."""
    mesh, found = jax.make_mesh((2,), ("device",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2]), []
    for implementation in kernels_here():
        if options.only and implementation not in options.only:
            continue
        worst = 0.0
        for case in [case for case in CASES if case.name in SHOWN]:
            drawn = [draw(case, seed) for seed in (0, 1)]
            slots = jnp.asarray(case.tile_slots, jnp.int32)

            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *drawn)
            spec = P("device")
            local = partial(_both, implementation, slots)
            run = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))
            ours = jax.device_get(run(stacked))
            for number, one in enumerate(drawn):
                wanted = jax.tree.leaves(jax.device_get(reference(case, *one)))
                mine = [np.asarray(leaf[number], np.float32) for leaf in jax.tree.leaves(ours)]
                errors = [float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in zip(mine, wanted, strict=True)]
                assert len(errors) == len(names(case))
                worst = max(worst, *(error if np.isfinite(error) else float("inf") for error in errors))
            print(f"{implementation}, {case.name}: {worst:.1e}", file=sys.stderr, flush=True)
        found.append(
            Found(f"{implementation}: {len(SHOWN)} cases, worst relative error", f"{worst:.1e}", worst <= BOUND)
        )
    return found


def _both(implementation: str, slots: Any, stacked: Any) -> Any:
    """Outputs and gradients of one device's case; its leaves have an axis of one device in front."""
    own = jax.tree.map(lambda leaf: leaf[0], stacked)
    return jax.tree.map(lambda leaf: leaf[None], outputs_and_gradients(implementation, slots, *own))


def laws(options: argparse.Namespace) -> list[Found]:
    """The solo law on every mesh, and a slot that is not finite beside healthy ones."""
    found = []
    for dtype, kernel in [(jnp.float32, "xla"), *((jnp.bfloat16, name) for name in kernels_here())]:
        name = "float32" if dtype == jnp.float32 else kernel
        if options.only and name not in options.only:
            continue
        single = small(None, dtype, kernel)
        alone = [train(single, [trial]) for trial in range(4)]
        found.append(_kept(f"one GPU, {name}: a trial and the same once more", alone[0], train(single, [0])))
        for mesh in MESHES:
            executor, where = small(mesh, dtype, kernel), f"{_words(mesh)}, {name}"
            healthy = train(executor, range(4))
            off = max(float(np.abs(healthy[0][:, n] / alone[n][0][:, 0] - 1).max()) for n in range(4))
            moved = max(_apart(healthy[1][n], alone[n][1][0]) for n in range(4))
            fine = dtype != jnp.float32 or (off <= SAME["loss"] and moved <= SAME["adapter"])
            value = f"{off:.1e}, {moved:.1e}"
            ill = train(executor, range(4), poisoned=1)
            found += [
                Found(f"{where}: together against alone, losses and adapters", value, fine),
                _kept(f"{where}: four trials and the same once more", healthy, train(executor, range(4))),
                _kept(f"{where}: healthy trials and the same beside a poisoned one", healthy, ill, (0, 2, 3)),
                Found(f"{where}: the poisoned one", str(ill[0][-1, 1]), not np.isfinite(ill[0][-1, 1])),
            ]
            print(*(f"{one.what}: {one.value}" for one in found[-4:]), sep="\n", file=sys.stderr, flush=True)
    return found


Trained = tuple[np.ndarray, list[Any]]
"""Losses, float32 [step, trial], and the adapters of the trials."""


def small(mesh: dict[str, Any] | None, dtype: Any, kernel: str) -> Executor:
    """An executor of a small base with a slot for each of four trials, or with one on one GPU."""
    return build(SMALL, mesh, dtype, kernel, slots=4 if mesh else 1, remat="none", length=128)


def train(executor: Executor, trials: Sequence[int], *, poisoned: int | None = None) -> Trained:
    """Trains a few trials together for six steps."""
    rows = random_rows(SMALL, 128)
    streams = {trial: Stream(rows, 3, 400, 1 + trial % 2, 1) for trial in trials}
    ranks = {trial: (16, 8, 16, 4)[trial] for trial in trials}
    for slot, trial in enumerate(trials):
        begun = new_adapter(SMALL, ranks[trial], trial)
        if trial == poisoned:
            begun["adapters"] = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), begun["adapters"])
        executor.put(slot, begun, {**HYPER, "learning_rate": (1 + trial) * 1e-3})
    losses = []
    for number in range(6):
        parts = [next_part(slot, streams[trial], trial, number, 0) for slot, trial in enumerate(trials)]
        losses.append(np.asarray(executor.train(parts).loss)[: len(trials)])
    taken = [
        executor.take(slot, ranks[trial], tuple(projections(SMALL)))["adapters"] for slot, trial in enumerate(trials)
    ]
    return np.stack(losses), taken


def _kept(what: str, one: Trained, other: Trained, trials: Sequence[int] | None = None) -> Found:
    """Says whether trials keep every bit of losses and adapters, else how far they are apart."""
    chosen = range(len(one[1])) if trials is None else trials
    losses = float(np.abs(one[0][:, chosen] - other[0][:, chosen]).max())
    adapters = max(_apart(one[1][trial], other[1][trial]) for trial in chosen)
    same = losses == adapters == 0
    return Found(what, "same bits" if same else f"{losses:.1e} and {adapters:.1e} apart", same)


def step(options: argparse.Namespace, mesh: dict[str, Any] | None) -> list[Found]:
    """Tokens a second and memory of a step on one GPU, or on a mesh of two that has as much work for each."""
    config, where = _shape(options), f"{options.model}, {_words(mesh)}"
    executor, ms = timed(options, mesh)
    gpus, groups = (1, 1) if mesh is None else (2, mesh.get("adapter", 1))
    tokens = groups * options.slots * options.rows * options.length
    speed = f"{ms:.1f} ms, {tokens / ms * 1e3:,.0f} tokens/s"
    if mesh == SHARDED:
        job = AdapterLoad(config, 16, tuple(projections(config)), options.rows, options.length, 2 * options.slots)
        each = options.slots * options.rows * options.length
        sys.path.append(str(Path(__file__).parents[1] / "plan"))
        from plan_capacity import cluster_of, parse

        cluster = cluster_of(parse([]))
        seconds = [gathered_step_s(job, cluster, count, "full", each) for count in (1, 2)]
        speed += f", predicted {seconds[1] / seconds[0]:.3f} times as long as on one GPU"
    [compiled] = executor.programs.stats().done
    shape = compiled.shape
    told = footprint(
        config, executor.plan, dtype=jnp.bfloat16, remat=Remat("full", True), training=shape, evaluation=shape,
        layout=executor.sharding.layout,
    )  # fmt: skip
    peaks = [(one.memory_stats() or {}).get("peak_bytes_in_use", 0) for one in jax.local_devices()[:gpus]]
    return [
        Found(f"{where}: a step", speed),
        Found(f"{where}: GiB resident, predicted", _gib(executor.resident_bytes(), told.resident)),
        Found(f"{where}: GiB of a step, predicted", _gib(compiled.temp_bytes, told.training)),
        Found(f"{where}: GiB of each GPU at most", _gib(*peaks)),
    ]


def profile(options: argparse.Namespace) -> list[Found]:
    """A traced step of the mesh adapter 2."""
    _, advance = bench(options, SHARDED)
    moved = moved_bytes(base_of(_shape(options)).total, 2)
    found = [Found(f"{options.model}: GiB gathered into each GPU, by the formula", f"{moved / 2**30:.2f}")]
    for device, (whole, busy, exposed) in sorted(exposed_of(advance, options.out / "trace").items()):
        speed = f"{moved / busy / 1e9:.0f} GB/s" if busy else "-"
        found.append(
            Found(
                f"{options.model}, {device}: ms of the step, NCCL, NCCL that nothing hides",
                f"{whole * 1e3:.1f}, {busy * 1e3:.1f} ({speed}), {exposed * 1e3:.1f}",
            )
        )
    return found


def exposed_of(step: Any, folder: Path) -> dict[str, tuple[float, float, float]]:
    """Traces a step; returns by device: seconds from first to last kernel, of NCCL's, of those with no other beside."""
    spans: dict[str, dict[bool, list[tuple[float, float]]]] = {}
    for device, name, begin, seconds in kernels_of(step, folder):
        own = spans.setdefault(device, {True: [], False: []})
        own["nccl" in name.lower()].append((begin, begin + seconds))
    found = {}
    for device, own in spans.items():
        ends = [end for pair in own.values() for end in pair]
        whole = max(end for _, end in ends) - min(begin for begin, _ in ends)
        busy, both = _length(own[True]), _length(own[True] + own[False])
        found[device] = whole, busy, both - _length(own[False])
    return found


def timed(options: argparse.Namespace, mesh: dict[str, Any] | None) -> tuple[Executor, float]:
    """Returns an executor and the milliseconds of one of its steps, of eight one after the other."""
    executor, advance = bench(options, mesh)
    ms = ms_a_step(advance, 8)
    print(f"{_words(mesh)}: {ms:.1f} ms", file=sys.stderr, flush=True)
    return executor, ms


def bench(options: argparse.Namespace, mesh: dict[str, Any] | None) -> tuple[Executor, Any]:
    """An executor with a trial in every slot, and what takes a step of all."""
    config = _shape(options)
    kernel = next(name for name in ("mosaic_gpu", "triton", "xla") if name in kernels_here())
    slots = options.slots * (mesh or {}).get("adapter", 1)
    executor = build(config, mesh, jnp.bfloat16, kernel, slots=slots, remat="full", length=options.length)
    rows = random_rows(config, options.length)
    return executor, fill(executor, config, rows, slots=slots, rank=16, batch=options.rows)


def build(
    config: ModelConfig, mesh: dict[str, Any] | None, dtype: Any, kernel: str, *, slots: int, remat: str, length: int
) -> Executor:
    """The same random base each time, on one GPU or on a mesh, with empty slots."""
    layout = None if mesh is None else make_layout(mesh, config)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(to_hf(config)))
        placement = None if layout is None else layout.placement
        kinds: dict[str, Any] = {"random_init": True, "seed": 0, "placement": placement}
        _, model = load_model(folder, dtype=dtype, remat=remat, scan_layers=True, **kinds)
    rows = rows_here([[length]])
    plan = StaticPlan(slots, 16, projections(config), rows, accumulates=False, drops=False, kernels=kernel)
    return Executor(model, plan, layout=layout)


def _shape(options: argparse.Namespace) -> ModelConfig:
    return replace(random_config("llama"), num_kv_heads=4) if options.model == "tiny" else SHAPES[options.model]


def _gib(*sizes: int) -> str:
    return ", ".join(f"{size / 2**30:.2f}" for size in sizes)


def _words(mesh: dict[str, Any] | None) -> str:
    if mesh is None:
        return "one GPU"
    base = ", base whole" if mesh == WHOLE else ""
    return ", ".join(f"{axis} {mesh[axis]}" for axis in ("adapter", "tensor", "data") if mesh.get(axis, 1) > 1) + base


def _apart(one: Any, other: Any) -> float:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs)


def _length(spans: Sequence[tuple[float, float]]) -> float:
    """Returns the seconds that intervals cover together."""
    total, until = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total


if __name__ == "__main__":
    sys.exit(run_script(main))

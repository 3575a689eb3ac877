"""Tries an engine of the orchestrator for real: a tiny task is moved and loses what it runs on, to its end.

    python scripts/engines/try_engine.py local   # this host: two GPUs, or devices of its CPU
    python scripts/engines/try_engine.py ray     # makes a simulated cluster of three nodes
    python scripts/engines/try_engine.py slurm --folder DIR --preempt COMMAND   # as try_slurm_engine.sh does

1. An attempt on one node, or one GPU of this host; another engine takes it over and tells it to stop: it saves.
2. The next one on two, as one run: a node is lost, its job is preempted, or its process is killed.
3. The third one on what is left resumes from the last checkpoint to the end.

Exit code 1, and what went wrong, if anything else happens. Needs a minute or two; with Ray, the extra `cluster`.
"""

from jaxrun.process.script import run_script

import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from altojax.cluster.engines.engine import Engine, Order, Report
from altojax.cluster.engines.local import WORKER
from jaxrun.config.script_options import ScriptOptions
from jaxrun.store.journal import Journal

ROOT = Path(__file__).resolve().parents[2]
GPUS = 2
"""Of every node."""
WAIT_S = 300.0
TASK = """
output_dir: {folder}/run
model: {{model_name_or_path: {root}/configs/tiny, random_init: true, dtype: float32}}
slots: 4
checkpoint_samples: 0.02
eval_samples: 0.1
early_exit: {{preset: none}}
search: {{lora_rank: 4, learning_rate: [1.0e-4, 3.0e-4, 1.0e-3, 3.0e-3], batch_size: 2, train_samples: 600}}
tasks:
  - {{name: sums, data: {{train: {folder}/sums.jsonl, validation_samples: 6, max_length: 32}}}}
"""
ON_CPUS = (
    "env",
    "JAX_PLATFORMS=cpu",
    f"JAX_NUM_CPU_DEVICES={GPUS}",
    "JAX_CPU_COLLECTIVES_IMPLEMENTATION=gloo",
    "XLA_FLAGS=--xla_backend_optimization_level=0",
    "OMP_NUM_THREADS=1",
    f"PYTHONPATH={ROOT}",
)
"""In front of the worker: the GPUs that nodes simulate are devices of their CPUs."""


@dataclass(frozen=True)
class EnginePlace:
    """Where an engine is tried.

    Attributes:
        engine: Makes the engine; called again, as a new orchestrator would.
        lose: Takes something away from an attempt that runs.
        nodes: Nodes of the second attempt.
        each: GPUs of a node that one part of it takes.
        gone: Whether a node stays away after that.
    """

    engine: Callable[[], Engine]
    lose: Callable[[Order], None]
    nodes: int
    each: int
    gone: bool = False


def main() -> int:
    """Runs the trial that is asked for."""
    parser = ScriptOptions(__doc__)
    parser.add_argument("engine", choices=("local", "ray", "slurm"))
    parser.add_argument("--folder", type=Path, help="seen by all nodes; a temporary one by default")
    parser.add_argument("--preempt", help="command that makes Slurm preempt the job")
    options = parser.read()
    with tempfile.TemporaryDirectory(prefix="try_engine.") as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        places: dict[str, Callable[[Path], AbstractContextManager[EnginePlace]]]
        places = {"local": local_place, "ray": ray_place, "slurm": partial(slurm_place, preempt=options.preempt)}
        with places[options.engine](folder) as place:
            trial(folder, place)
    return 0


@contextmanager
def local_place(folder: Path) -> Iterator[EnginePlace]:
    """This host, with two of its GPUs or of its CPU's devices."""
    from altojax.cluster.engines.local import LocalEngine
    from altojax.cluster.engines.process import Identity

    def lose(order: Order) -> None:
        Identity.model_validate_json((order.folder / f"attempt-{order.attempt}.pid.json").read_text()).kill()

    yield EnginePlace(lambda: LocalEngine(gpus=GPUS, cache=folder / "xla"), lose, nodes=1, each=1)


@contextmanager
def ray_place(folder: Path) -> Iterator[EnginePlace]:
    """A cluster of a head without GPUs and three nodes with two simulated GPUs each, all of them this machine."""
    from ray.cluster_utils import Cluster

    from altojax.cluster.engines.ray_engine import RayEngine

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0})
    nodes = [cluster.add_node(num_cpus=1, num_gpus=GPUS) for _ in range(3)]

    def engine() -> RayEngine:
        return RayEngine(address=cluster.address, command=(*ON_CPUS, *WORKER), cache=folder / "xla", grace_s=60.0)

    def lose(order: Order) -> None:
        last = list(order.gpus)[-1].rpartition("-")[2]
        [victim] = [node for node in nodes if node.node_id.startswith(last)]
        cluster.remove_node(victim, allow_graceful=False)

    try:
        yield EnginePlace(engine, lose, nodes=2, each=GPUS, gone=True)
    finally:
        cluster.shutdown()


@contextmanager
def slurm_place(folder: Path, preempt: str) -> Iterator[EnginePlace]:
    """The Slurm that SLURM_CONF names."""
    from altojax.cluster.engines.slurm import SlurmEngine

    def engine() -> SlurmEngine:
        return SlurmEngine(command=(*ON_CPUS, *WORKER), cache=folder / "xla", pace_s=0.5, settle_s=5.0)

    def lose(order: Order) -> None:
        subprocess.run(shlex.split(preempt), check=True)

    yield EnginePlace(engine, lose, nodes=2, each=GPUS)


def trial(folder: Path, place: EnginePlace) -> None:
    """Runs one task through three attempts."""
    order = prepare(folder)
    engine = place.engine()
    wait(lambda: len(engine.nodes()) >= place.nodes, f"{place.nodes} nodes")
    nodes = list(engine.nodes())
    some, whole = tuple(range(place.each)), tuple(range(GPUS))
    tell(f"nodes: {', '.join(nodes)}")

    first = replace(order, gpus={nodes[0]: some})
    engine.start(first)
    trained(engine, first, 2)
    engine.close()
    engine = place.engine()
    engine.adopt([first])
    engine.stop(order.job, 1)
    check(report_of(engine), "halted", "")
    tell("attempt 1: a later engine took it over and told it to stop; it saved")

    second = replace(order, attempt=2, gpus=dict.fromkeys(nodes[: place.nodes], whole))
    engine.start(second)
    trained(engine, second, 2)
    place.lose(second)
    report = report_of(engine)
    check(report, "failed", "node")
    tell(f"attempt 2: {report.reason}")

    if place.gone:
        wait(lambda: len(engine.nodes()) == len(nodes) - 1, "a node that is gone")
    third = replace(order, attempt=3, gpus={list(engine.nodes())[-1]: some})
    engine.start(third)
    check(report_of(engine), "ended", "")
    engine.close()
    with Journal.read(order.folder / "run") as journal:
        starts = journal.events("run_start")
    devices, ticks = [event.payload["device"] for event in starts], [event.tick for event in starts]
    wanted = [sum(map(len, one.gpus.values())) for one in (first, second, third)]
    if [int(device.split()[0]) for device in devices] != wanted or not 0 < ticks[1] < ticks[2]:
        sys.exit(f"try_engine: error: began on {devices} at ticks {ticks}, expected {wanted} devices, each later")
    tell(f"attempt 3: went on to the end; the attempts ran on {', '.join(devices)} from ticks {ticks}")


def prepare(folder: Path) -> Order:
    """Writes the task."""
    job = folder / "job"
    job.mkdir(parents=True)
    rows = [f'{{"prompt": "{a}+{b}=", "completion": "{a + b}"}}\n' for a in range(8) for b in range(8)]
    (job / "sums.jsonl").write_text("".join(rows))
    (job / "task.yaml").write_text(TASK.format(folder=job, root=ROOT))
    return Order("job", 1, job, {})


def trained(engine: Engine, order: Order, evaluations: int) -> None:
    """Waits until an attempt has evaluated its trials so often, which it began itself."""
    path = order.folder / "run" / "metrics.jsonl"
    log = order.folder / f"attempt-{order.attempt}.log"
    count = len(path.read_text().splitlines()) if path.exists() else 0

    def done() -> bool:
        ended = engine.poll()
        if ended:
            sys.exit(f"try_engine: error: ended too early: {ended[0]}")
        return log.exists() and path.exists() and len(path.read_text().splitlines()) >= count + 8 * evaluations

    wait(done, f"{evaluations} evaluations of attempt {order.attempt}")


def report_of(engine: Engine) -> Report:
    """Waits for the report of the attempt."""
    found: list[Report] = []

    def any_yet() -> bool:
        found.extend(engine.poll())
        return bool(found)

    wait(any_yet, "the end of an attempt")
    return found[0]


def check(report: Report, outcome: str, blame: str) -> None:
    """Ends the trial where a report is not what was expected."""
    if report.outcome != outcome or (blame and report.blame != blame):
        sys.exit(f"try_engine: error: {report}, expected {outcome} {blame}")


def wait(what: Callable[[], bool], told: str) -> None:
    """Waits until something holds."""
    deadline = time.monotonic() + WAIT_S
    while not what():
        if time.monotonic() > deadline:
            sys.exit(f"try_engine: error: {told}: not after {WAIT_S:.0f} s")
        time.sleep(0.2)


def tell(text: str) -> None:
    """Says what was seen."""
    print(f"try_engine: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(run_script(main))

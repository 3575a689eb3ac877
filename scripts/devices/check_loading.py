"""Checks how much memory loading a model onto a mesh needs: of each process its shard, and at most one tensor.

    python scripts/devices/check_loading.py [--cases 1x8 2x1 2x4] [--layers 2] [--vocabulary 32768] [--random-init]

Writes a random model, by default as wide as Llama 70B, as safetensors into a temporary folder; then each case, so many
processes with so many CPU devices each, loads it sharded over all devices, and each process compares its shards with
what was written. Prints the largest growth of anonymous memory (RssAnon) of any process while it loads: pages of the
mapped files, which the kernel takes back when it needs them, are not in it. Ends with code 1 if a process needs more
than its shards, the largest tensor of one layer and what the runtime takes. Random weights, which no file bounds, are
only measured.
"""

from jaxrun.process.script import run_script

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from rich.console import Console
from rich.table import Table

from jaxlm.devices.hosts import join
from jaxlm.families.config import ModelConfig
from jaxlm.families.names import Weight, weights
from jaxlm.files.hf import write_weights
from jaxlm.files.weights import Placement, load_model, read_model_config
from jaxlm.models.transformer import Transformer
from jaxrun.config.script_options import ScriptOptions

ROOT = Path(__file__).parents[2]
RUNTIME_BYTES = 96 * 2**20
"""What the runtime takes, which compiles a few dozen copies meanwhile."""
_WATCH = """
import pathlib, re, select, sys
status, peak = pathlib.Path(f"/proc/{sys.argv[1]}/status"), 0
print("watching", flush=True)
while not select.select([sys.stdin], [], [], 0.002)[0]:
    peak = max(peak, int(re.search(r"RssAnon:\\s+(\\d+)", status.read_text())[1]) * 1024)
print(peak)
"""


class ProcessCase(NamedTuple):
    """How many processes there are, and devices of each."""

    processes: int
    devices: int

    @staticmethod
    def parse(text: str) -> "ProcessCase":
        """Reads ``PROCESSESxDEVICES``."""
        processes, devices = map(int, text.split("x"))
        return ProcessCase(processes, devices)


class MemoryNeed(NamedTuple):
    """What one process held and needed, in bytes.

    Attributes:
        shards: Its devices' shards together.
        peak: Largest growth of anonymous memory while it loaded.
    """

    shards: int
    peak: int


def main() -> int:
    """Writes the model and runs every case; as one of a case's processes, loads it."""
    parser = ScriptOptions(__doc__)
    parser.add_argument(
        "--cases", nargs="+", type=ProcessCase.parse, default=[ProcessCase(1, 8), ProcessCase(2, 1), ProcessCase(2, 4)]
    )
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--vocabulary", type=int, default=32768)
    parser.add_argument("--random-init", action="store_true", help="draw the weights on the mesh, read none")
    parser.add_argument("--load", type=Path, metavar="FOLDER", help="be one process of a case")
    options = parser.read()
    if options.load:
        print(json.dumps(load(options.load, options.random_init)))
        return 0
    config = llama_70b(options.layers, options.vocabulary)
    largest = largest_tensor(config)
    table = Table("processes", "devices each", "shards", "largest tensor", "peak", "beyond the shards", title="MiB")
    fits = True
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        write(model, config)
        for case in options.cases:
            for shards, peak in run(case, model, options.random_init):
                cells = (shards, largest, peak, peak - shards)
                table.add_row(str(case.processes), str(case.devices), *(f"{size / 2**20:.0f}" for size in cells))
                fits &= peak <= shards + largest + RUNTIME_BYTES
    Console(width=100).print(table)
    if not fits and not options.random_init:
        print("check_loading: error: a process needs more than its shards and one tensor", file=sys.stderr)
        return 1
    return 0


def llama_70b(layers: int, vocabulary: int) -> ModelConfig:
    """Llama 70B, with fewer layers and tokens."""
    whole = read_model_config(ROOT / "configs" / "shapes" / "llama-3.1-70b", weights=False)
    return replace(whole, num_layers=layers, vocab_size=vocabulary)


def largest_tensor(config: ModelConfig) -> int:
    """Bytes of the largest tensor of one layer, in bfloat16."""
    return 2 * max(int(np.prod(weight.shape)) for weight in weights(config))


class DrawnWeights(Mapping[str, np.ndarray]):
    """Weights that are drawn, always the same, when they are asked for: random bits that are no NaN."""

    def __init__(self, config: ModelConfig):
        self.weights = {weight.path: weight for weight in weights(config)}

    def __getitem__(self, path: str) -> np.ndarray:
        weight = self.weights[path]
        shape = weight.shape if weight.layers is None else (len(weight.layers), *weight.shape)
        bits = np.random.default_rng(zlib.crc32(path.encode())).integers(0, 2**16, shape, np.uint16)
        bits &= 0xBFFF
        return bits.view(jnp.bfloat16)

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)


def write(folder: Path, config: ModelConfig) -> None:
    """Writes a model folder, a file for each tensor."""
    folder.mkdir()
    write_weights(folder, config, DrawnWeights(config), dtype=jnp.bfloat16, max_shard_bytes=1)


def run(case: ProcessCase, folder: Path, random_init: bool = False) -> list[MemoryNeed]:
    """Loads a model in processes of their own.

    Raises:
        RuntimeError: One of them failed.
    """
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    command = [sys.executable, str(Path(__file__).resolve()), "--load", str(folder)]
    command += ["--random-init"] if random_init else []
    shared = {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(case.devices),
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(case.processes),
    }
    started = [
        subprocess.Popen(
            command,
            env=os.environ | shared | {"JAX_PROCESS_ID": str(process)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(case.processes)
    ]
    try:
        said = [one.communicate(timeout=600) for one in started]
    finally:
        for one in started:
            one.kill()
    for one, (_, errors) in zip(started, said, strict=True):
        if one.returncode:
            raise RuntimeError(f"exit code {one.returncode}: {errors}")
    return [MemoryNeed(**json.loads(out.splitlines()[-1])) for out, _ in said]


def load(folder: Path, random_init: bool) -> dict[str, int]:
    """Loads the model over all devices of all processes, and says what this one needed.

    Raises:
        ValueError: What was loaded is not what was written.
    """
    with join("check_loading"):
        mesh = jax.make_mesh((jax.device_count(),), ("tensor",), axis_types=(AxisType.Auto,))
        kinds: dict[str, Any] = {"random_init": random_init, "placement": tensor_parallel(mesh)}
        with watch() as peak:
            before = anonymous_bytes()
            config, model = load_model(folder, dtype=jnp.bfloat16, **kinds)
            jax.block_until_ready(nnx.state(model))
        values = values_of(model)
        if not random_init:
            compare(values, DrawnWeights(config))
        shards = sum(shard.data.nbytes for value in values.values() for shard in value.addressable_shards)
        return MemoryNeed(shards, peak[0] - before)._asdict()


def tensor_parallel(mesh: jax.sharding.Mesh) -> Placement:
    """Shares out heads, neurons and the vocabulary; norms are on every device."""

    def place(weight: Weight) -> NamedSharding:
        spec = PartitionSpec()
        if weight.path.endswith(("o_proj.kernel", "down_proj.kernel")):
            spec = PartitionSpec(None, "tensor", None)
        elif weight.path.endswith(".kernel"):
            spec = PartitionSpec(None, None, "tensor")
        elif weight.path.endswith(".embedding"):
            spec = PartitionSpec("tensor", None)
        return NamedSharding(mesh, spec)

    return place


def values_of(model: Transformer) -> dict[str, jax.Array]:
    """A model's arrays by path."""
    return {".".join(map(str, path)): one.get_value() for path, one in nnx.to_flat_state(nnx.state(model))}


def compare(values: Mapping[str, jax.Array], written: Mapping[str, np.ndarray]) -> None:
    """Compares this process's shards with what was written, bit for bit."""
    for path, value in values.items():
        expected = written[path].view(np.uint16)
        for shard in value.addressable_shards:
            if not np.array_equal(np.asarray(shard.data).view(np.uint16), expected[shard.index]):
                raise ValueError(f"{path}[{shard.index}] is not what was written")


def anonymous_bytes() -> int:
    """This process's resident memory that is no page of a file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


@contextlib.contextmanager
def watch() -> Iterator[list[int]]:
    """Has another process, which nothing here holds up, watch this one's memory; yields where the peak goes."""
    command = [sys.executable, "-c", _WATCH, str(os.getpid())]
    peak: list[int] = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as watcher:
        assert watcher.stdin is not None and watcher.stdout is not None
        watcher.stdout.readline()
        yield peak
        watcher.stdin.close()
        peak.append(int(watcher.stdout.readline()))


if __name__ == "__main__":
    sys.exit(run_script(main))

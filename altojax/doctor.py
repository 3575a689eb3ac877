"""``altojax doctor``: what this machine has and would use, and whether a config would run on it."""

import os
import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from harness.cli import Args, Positional, Verb
from harness.errors import UserError

if TYPE_CHECKING:
    import jax

    from altojax.search import TuneConfig
    from altojax.setup import Base

PACKAGES = (
    "altojax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "transformers",
    "tokenizers",
    "safetensors",
    "gguf",
    "numpy",
    "pydantic",
    "matplotlib",
)
OPTIONAL = ("jax-triton", "triton", "tensorboardX", "trackio", "wandb")


def run(args: Args) -> int:
    """Runs ``altojax doctor [CONFIG] key=value ...``."""
    if args["config"] is None and args.overrides:
        raise UserError(f"doctor: '{args.overrides[0]}' without a config, expected doctor CONFIG key=value")
    for line in machine():
        print(line)
    if args["config"] is not None:
        print()
        for line in check_run(args["config"], args.overrides):
            print(line)
    return 0


def machine() -> Iterator[str]:
    """Yields lines about Python, packages, devices and what would be used on them."""
    import jax

    from pallas_kernels import choose

    yield f"python        {platform.python_version()} on {platform.platform()}"
    yield f"packages      {', '.join(f'{name} {_version(name)}' for name in PACKAGES)}"
    yield f"optional      {', '.join(f'{name} {_version(name)}' for name in OPTIONAL)}"
    yield f"backend       {jax.default_backend()}"
    for device in jax.local_devices():
        yield f"device        {device.id}: {device.device_kind}, {_memory(device)}"
    name, passed_over = choose()
    yield f"adapter GEMM  {name}"
    for reason in passed_over:
        yield f"              not {reason}"
    fused = "cudnn for 16-bit heads of up to 128, else xla" if jax.default_backend() == "gpu" else "xla"
    yield f"attention     {fused}"
    cache = jax.config.jax_compilation_cache_dir or os.environ.get("JAX_COMPILATION_CACHE_DIR")
    yield f"compile cache {_folder(cache)}"


def check_run(config_path: str, overrides: tuple[str, ...]) -> Iterator[str]:
    """Yields lines about a tune config: sizes, memory, data. Loads no weights and writes nothing.

    Raises:
        UserError: What ``altojax tune`` would stop at.
    """
    from altojax.search import TuneConfig, parse_bytes
    from altojax.setup import prepare
    from backbone.machine import device_budget
    from harness.config import load_config
    from harness.opening import day_of

    config = load_config(TuneConfig, config_path, overrides)
    prepared = prepare(config, day_of(Path(config.output_dir)))
    budget = parse_bytes(config.memory_budget) or device_budget()
    yield f"config        {config_path}: fine"
    yield f"memory budget {_size(budget)} of a device"
    for base in prepared.bases:
        yield from _sizes(config, base, budget)
        yield f"  trials      {len(base.trials)} in {len(base.tasks)} tasks"
        for task in base.tasks:
            for note in prepared.data[task].notes:
                yield f"  {task}: {note}"


def _sizes(config: "TuneConfig", base: "Base", budget: int) -> Iterator[str]:
    """Yields lines about what a base and its slots take of each device."""
    import jax.numpy as jnp

    from altojax.capacity import REMATS, adapter_parameters, base_of, slot_of, slots_that_fit
    from altojax.choose_mesh import choose_layout, received_bytes, weight_bytes
    from altojax.executor import logits_bytes
    from altojax.setup import slots_of
    from backbone.spec import compute_dtype

    model, dtype = base.config, jnp.dtype(compute_dtype(base.spec))
    weights = base_of(model, dtype.itemsize)
    layout = choose_layout(config.mesh, model, len(base.trials), dtype, budget)
    slots = slots_of(config, base, layout)
    devices, groups, replicas = (1, 1, 1) if layout is None else (layout.mesh.size, layout.groups, layout.replicas)
    kept, held = weights.total // devices, weights.total if layout is None else weight_bytes(layout, weights)
    rank, keys = max(trial.config.lora_rank for trial in base.trials), base.projections().keys()
    adapter, copies = adapter_parameters(model, rank, keys), 4 if base.accumulates else 3
    resident = kept + 4 * adapter * copies * slots // groups
    tokens = max(-(-trial.load.rows // replicas) * trial.length for trial in base.trials)
    each = {remat: slot_of(model, rank, keys, remat, tokens) for remat in REMATS}
    fit = {remat: slots_that_fit(budget, held, slot, logits_bytes()) for remat, slot in each.items()}
    total = weights.total / dtype.itemsize / 1e6
    yield f"base          {base.spec.model_name_or_path}: {model.family}, {total:,.1f} M parameters"
    yield f"  weights     {_size(weights.total)} in {dtype.name}"
    yield f"  mesh        {'one device' if layout is None else layout}"
    if layout is not None:
        yield f"  a device    keeps {_size(kept)} of the base, and holds up to {_size(held)} of it at a time"
        yield f"  a step      brings {_size(received_bytes(layout, weights))} of it to each device, whatever the slots"
    yield (
        f"  a slot      {_size(4 * adapter * copies)}: {adapter / 1e6:,.2f} M parameters at rank {rank}, float32, "
        f"{copies} times (weights, moments{', gathered gradients' if copies == 4 else ''})"
    )
    room = "fits" if resident < budget else "MORE THAN THE BUDGET"
    where = f"{slots} slots" if groups == 1 else f"{slots // groups} of {slots} slots"
    yield f"  resident    {_size(resident)} with {where}, before a step's own needs: {room}"
    told = ", ".join(f"{count} (remat {remat})" for remat, count in fit.items())
    yield f"  would fit   slots on a device, by the formulas for bfloat16 in docs/capacity.md: {told}"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "missing"


def _memory(device: "jax.Device") -> str:
    stats = device.memory_stats()
    if not stats or "bytes_limit" not in stats:
        return "memory of the machine"
    return f"{_size(stats['bytes_limit'])} of memory, {_size(stats.get('bytes_in_use', 0))} in use"


def _folder(cache: str | None) -> str:
    if not cache:
        return "none: every start compiles again (JAX_COMPILATION_CACHE_DIR names one)"
    path = Path(cache)
    if not path.is_dir():
        return f"{cache} (made when first used)"
    files = [file for file in path.iterdir() if file.is_file()]
    writable = "" if os.access(path, os.W_OK) else ", NOT WRITABLE"
    return f"{cache}: {len(files)} files, {_size(sum(file.stat().st_size for file in files))}{writable}"


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def _config() -> type["TuneConfig"]:
    from altojax.search import TuneConfig

    return TuneConfig


VERB = Verb(
    name="doctor",
    help="Show what this machine has and would use, and whether a config would run on it.",
    run=run,
    positionals=(Positional("config", "a YAML file as for tune", required=False),),
    overrides=True,
    config=_config,
    examples=("altojax doctor", "altojax doctor configs/quickstart.yaml"),
)

"""``altojax doctor``: what this machine has and would use, and whether a config would run on it."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from jaxrun.config.config import read_tree
from jaxrun.config.settings import RunSettings, take_settings
from jaxrun.config.verbs import Args, Positional, Verb, later
from jaxrun.process.errors import UserError
from jaxrun.terminal.sizes import counted, size_text

if TYPE_CHECKING:
    from altojax.run.load_base import PlacedBase
    from altojax.run.prepare import PreparedRun


def run(args: Args) -> int:
    """Runs ``altojax doctor [CONFIG] key=value ...``."""
    if args["config"] is None and args.overrides:
        raise UserError(f"doctor: '{args.overrides[0]}' without a config, expected doctor CONFIG key=value")
    for line in machine():
        print(line)
    if args["config"] is not None:
        print()
        for line in check(args["config"], args.overrides):
            print(line)
    return 0


def check(path: str, words: Sequence[str]) -> Iterator[str]:
    """Yields lines about a file for tune, submit or serve, which its keys tell apart.

    Raises:
        UserError: What that verb would stop at.
    """
    from altojax.cluster.service.verbs.doctor import check_serve, check_task
    from altojax.cluster.service.verbs.serve import ServeConfig

    settings, overrides = take_settings(RunSettings, words)
    keys = {*read_tree(path), *(word.partition("=")[0].partition(".")[0] for word in overrides)}
    if "tasks" not in keys and keys & ServeConfig.model_fields.keys():
        yield from check_serve(path, overrides)
    elif "queue" in keys:
        yield from check_task(path, overrides, overwrite=settings.overwrite)
    else:
        yield from check_run(path, overrides, overwrite=settings.overwrite)


def machine() -> Iterator[str]:
    """Yields lines about Python, packages, devices and what would be used on them."""
    from jaxlm.inventory import inventory
    from pallas_kernels import choose

    yield from inventory()
    name, passed_over = choose()
    yield f"adapter GEMM  {name}"
    for reason in passed_over:
        yield f"              not {reason}"


def check_run(config_path: str, overrides: Sequence[str], *, overwrite: bool = False) -> Iterator[str]:
    """Yields lines about a tune config: sizes, memory, data. Loads no weights and writes nothing.

    Raises:
        UserError: What ``altojax tune`` would stop at.
    """
    from altojax.config.tune_config import TuneConfig
    from altojax.run.load_base import place
    from altojax.run.tuner import Tuner
    from jaxrun.config.config import load_config

    config = load_config(TuneConfig, config_path, overrides)
    tuner = Tuner(config, overwrite=overwrite)
    tuner.opening.check()
    prepared = tuner.prepared
    placed = [place(config, base) for base in prepared.bases]
    for one in placed:
        one.check()
    yield f"config        {config_path}: fine"
    for one in placed:
        yield from _sizes(one)
        yield from _course(prepared, one)
        for task in one.base.tasks:
            for note in prepared.data[task].notes:
                yield f"  {task}: {note}"


def _sizes(placed: "PlacedBase") -> Iterator[str]:
    """Yields lines about what a base and its slots take of each device."""
    import jax.numpy as jnp

    from altojax.device.auto_mesh import received_bytes, weight_bytes
    from altojax.estimates.memory_model import adapter_parameters, base_of, state_bytes
    from jaxlm.models.computation import compute_dtype
    from jaxlm.quantised.formats import names_of

    base, layout = placed.base, placed.layout
    dtype = jnp.dtype(compute_dtype(base.spec))
    weights, parameters = base_of(base.config, dtype.itemsize, base.forms), base_of(base.config, 1).total
    kept = f"{names_of(base.forms)}, the rest {dtype.name}" if base.forms else dtype.name
    rank, keys = max(trial.config.lora_rank for trial in base.at_largest), base.projections().keys()
    adapter = adapter_parameters(base.config, rank, keys)
    found, variant = placed.expected()
    yield (
        f"base          {base.spec.model_name_or_path}: {base.config.family}, "
        f"{parameters / 1e6:,.1f} M parameters, {size_text(weights.total)} in {kept}"
    )
    yield f"  mesh        {'one device' if layout is None else layout}"
    if layout is not None:
        held, received = weight_bytes(layout, weights), received_bytes(layout, weights)
        yield f"  a device    keeps {size_text(found.base)} of the base, holds up to {size_text(held)} of it at a time"
        yield f"  a step      all-gathers {size_text(received)} of it to each device, whatever the slots"
    yield f"  trials      {len(base.trials)} in {counted(len(base.tasks), 'task')}, {_slots(placed)}"
    others = [*(["gathered gradients"] if base.accumulates else []), *(f"an average of {n:g}" for n in base.averages)]
    state = placed.config.optimizer_state
    copies = ", ".join([f"two moments in {state}; in float32 its weights", "the best so far", *others])
    size = size_text(round(adapter * state_bytes(state, 1 + len(others))))
    yield f"  a slot      {adapter / 1e6:,.2f} M parameters at rank {rank}, {size}: {copies}"
    slots = found.resident - found.base
    yield f"  resident    {size_text(found.resident)}: base {size_text(found.base)}, slots {size_text(slots)}"
    yield (
        f"  largest     ~{size_text(found.training)} for a training step (remat {variant.remat.remat}), "
        f"~{size_text(found.evaluation)} for an evaluation, {size_text(found.logits)} of them logits"
    )
    room = f"{size_text(placed.budget_bytes)} of a device, of which a run uses {size_text(placed.usable_bytes)}"
    less = "" if found.peak <= placed.usable_bytes else ": steps of fewer tokens, or fewer slots at work"
    yield f"  peak        ~{size_text(found.peak)} of {room}{less}"


def _slots(placed: "PlacedBase") -> str:
    slots, groups = placed.slots, 1 if placed.layout is None else placed.layout.groups
    where = counted(slots, "slot") if groups == 1 else f"{slots // groups} of {slots} slots on each device"
    if placed.config.slots is not None:
        return f"{where}, as asked for"
    return f"{where}, {'all that are of use' if slots == placed.useful else 'the most that fit'}"


def _course(prepared: "PreparedRun", placed: "PlacedBase") -> Iterator[str]:
    """Yields lines about the steps of a run, as they are predicted where no trial ends early."""
    from altojax.run.load_base import course_of
    from jaxrun.terminal.progress import duration

    base, layout = placed.base, placed.layout
    devices = 1 if layout is None else layout.groups * layout.replicas
    offer = placed.offer(placed.variant)
    prices = offer.prices
    _, course = course_of(base, placed.slots, layout)
    real = sum(
        trial.micro_steps * trial.load.rows * sum(len(row.tokens) for row in trial.stream.rows) / len(trial.stream.rows)
        for trial in base.trials
    )
    judged = sum(
        len(trial.eval_steps) * sum(len(row.tokens) for row in prepared.data[trial.task].validation)
        for trial in base.trials
    )
    padding = max(0.0, 1 - real / (course.tokens * devices))
    steps_s, judged_s = offer.training_s(course), judged / devices * prices.token_s / 3
    yield f"  steps       ~{course.steps:,}; ~{padding:.0%} of their tokens are padding"
    took = f"~{duration(steps_s)} of steps, ~{duration(judged_s)} of evaluations"
    yield f"  time        {took}, if no trial ends early"
    yield f"  step        {offer.told(course)}"


VERB = Verb(
    name="doctor",
    help="Show what this machine has and would use, and whether a config would run on it.",
    run=run,
    positionals=(Positional("config", "a YAML file as for tune, submit or serve", required=False),),
    config=later("altojax.config.tune_config:TuneConfig"),
    others=(
        later("altojax.cluster.service.submission_builder:SubmitConfig"),
        later("altojax.cluster.service.verbs.serve:ServeConfig"),
    ),
    settings=RunSettings,
    examples=("altojax doctor", "altojax doctor configs/quickstart.yaml"),
)

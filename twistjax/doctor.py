"""``twistjax doctor``: what this machine has, and whether a config would run on it."""

import math
from collections.abc import Iterator, Sequence

from jaxrun.config.config import load_config
from jaxrun.config.settings import RunSettings, take_settings
from jaxrun.config.verbs import Args
from jaxrun.process.errors import UserError
from jaxrun.terminal.sizes import counted


def run(args: Args) -> int:
    """Runs ``twistjax doctor [CONFIG] key=value ...``."""
    from jaxlm.inventory import inventory

    if args["config"] is None and args.overrides:
        raise UserError(f"doctor: '{args.overrides[0]}' without a config, expected doctor CONFIG key=value")
    for line in inventory():
        print(line)
    if args["config"] is not None:
        print()
        for line in check_run(args["config"], args.overrides):
            print(line)
    return 0


def check_run(config_path: str, overrides: Sequence[str]) -> Iterator[str]:
    """Yields lines about a config: sizes, subnetworks, rounds, data. Loads no weights and writes nothing.

    Raises:
        UserError: What ``twistjax train`` would stop at.
    """
    from jaxlm.devices.machine import device_budget
    from jaxlm.models.functional import Functional
    from jaxrun.terminal.sizes import size_text
    from twistjax.config import TwistConfig
    from twistjax.training.central_model import checkpoint_bytes
    from twistjax.training.prepare import build_rounds
    from twistjax.training.rounds_plan import at_once
    from twistjax.training.trainer import Trainer

    settings, keys = take_settings(RunSettings, overrides)
    config = load_config(TwistConfig, config_path, keys)
    trainer = Trainer(config, overwrite=settings.overwrite)
    trainer.opening.check()
    prepared = trainer.prepared
    budget = device_budget()
    build_rounds(config, prepared, budget)
    yield f"config        {config_path}: fine"
    model, units, plan = prepared.model, prepared.units, prepared.plan
    whole = _parameters(Functional(model).shapes)
    yield f"model         {config.model.model_name_or_path}: {model.family}, {whole / 1e6:,.1f} M parameters"
    for kappa in config.subnetworks.ladder:
        small = units.subnetwork(kappa)
        share = _parameters(Functional(small).shapes)
        told = f"{counted(small.num_heads, 'head')}, {counted(small.intermediate_size, 'neuron')}"
        yield f"  kappa {kappa:<6g}{told}, {share / 1e6:,.1f} M parameters ({share / whole:.0%})"
    yield (
        f"  training    {counted(plan.rounds, 'round')} of {counted(config.training.local_steps, 'step')}, "
        f"{counted(config.subnetworks.workers, 'worker')}, {at_once(config.subnetworks)} at once"
    )
    yield f"  central     {size_text(checkpoint_bytes(config, prepared))} in memory and in a checkpoint, float32"
    yield f"  budget      {size_text(budget)} of a device"
    for line in (*prepared.train.summary(), *prepared.validation.summary()):
        yield f"  {line}"


def _parameters(shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(map(math.prod, shapes.values()))

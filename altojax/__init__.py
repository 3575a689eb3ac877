"""Adaptive LoRA tuning: many configurations at once over one frozen base, weak ones ended early.

From Python: `tune` a sweep, look at its `Run`, `load` what came out. What takes long is imported when it is first asked
for, so that ``import altojax`` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from rich.console import Console

    from altojax.config.tune_config import TuneConfig
    from altojax.early_exit.callbacks import Callback, Evaluation, Metric, Observers
    from altojax.inference.loaded_model import LoadedModel
    from altojax.report.held_out import HeldOut
    from altojax.report.run_results import BestTrial, Run
    from altojax.run.loop.scoring import ScoreAnswer
    from jaxrun.process.errors import Failure, UserError

    type Config = str | Path | Mapping[str, Any] | TuneConfig

    __version__: str

__all__ = [
    "BestTrial",
    "Evaluation",
    "Failure",
    "HeldOut",
    "LoadedModel",
    "Run",
    "UserError",
    "__version__",
    "load",
    "open_run",
    "tune",
]

_HOME = {
    "BestTrial": "altojax.report.run_results",
    "Evaluation": "altojax.early_exit.callbacks",
    "Failure": "jaxrun.process.errors",
    "HeldOut": "altojax.report.held_out",
    "LoadedModel": "altojax.inference.loaded_model",
    "Run": "altojax.report.run_results",
    "UserError": "jaxrun.process.errors",
}


def tune(
    config: "Config",
    *,
    callbacks: "Sequence[Callback]" = (),
    metric: "Metric | None" = None,
    score: "ScoreAnswer | None" = None,
    overwrite: bool = False,
    quiet: bool = False,
    **overrides: Any,
) -> "Run":
    """Trains the configurations of all tasks, as ``altojax tune`` does; resumes where it stopped.

    Ctrl-C stops it as soon as everything is saved, a second one at once. Signals are caught while it runs in the main
    thread; in another one it catches none.

    Args:
        config: A YAML file, or its content as Python values; paths, tuples and NumPy numbers are taken, too.
        callbacks: Each sees every evaluation and returns why the trial ends, or None where it goes on. An end that was
            decided stands when the run resumes, also without the callback.
        metric: Makes numbers of an evaluation, each with a name, which callbacks see and `Run.curves` has.
        score: Called with prompt, answer and reference, where ``select_by`` is score; returns a number from 0 to 1.
        overwrite: Discard the run that is in output_dir, and start anew.
        quiet: Show no progress.
        **overrides: Keys of the config and their values, such as ``seed=1`` or ``**{"search.lora_rank": [8, 16]}``.

    Returns:
        The finished run.

    Raises:
        UserError: Anything wrong with config, models or data, or with what callbacks return.
        Failure: Memory ran out.
        KeyboardInterrupt: It was stopped; the same call resumes it.
    """
    from altojax.early_exit.callbacks import Observers
    from altojax.report.run_results import Run
    from jaxrun.terminal.progress import console_of

    console = console_of(quiet=quiet)
    observers = Observers.of(callbacks, metric)
    kinds: Any = {"observers": observers, "score": score, "console": console}
    code, folder = run_tune(config, overrides, overwrite=overwrite, **kinds)
    if code:
        raise KeyboardInterrupt(f"stopped with everything saved in {folder}; the same call resumes it")
    return Run(folder)


def open_run(path: "str | Path") -> "Run":
    """Opens a run of ``altojax tune``, also while it is live or after it was stopped.

    Args:
        path: Its output_dir.

    Raises:
        UserError: There is none.
    """
    from altojax.report.run_results import Run

    return Run(path)


def load(
    model: "str | Path | Run",
    *,
    adapter: "str | Path | bool | None" = None,
    task: str | None = None,
    trial: str | None = None,
    dtype: str | None = None,
    quantize: str | None = None,
    mesh: "Mapping[str, Any] | None" = None,
) -> "LoadedModel":
    """Loads a model to generate with, and to compute losses of.

    Args:
        model: A run or its folder, a Hugging Face folder, a .gguf file or a hub id.
        adapter: An adapter's folder; None takes a run's own, False the base alone.
        task: Which task of a run; may be left out where there is one.
        trial: Which trial of a run; None is the best.
        dtype: Of base and activations: float32 or bfloat16. None is the run's, or bfloat16 on an accelerator and
            float32 on a CPU.
        quantize: The form of the base's matrices, such as nf4; None is the run's, or that on which the adapter was
            trained.
        mesh: How devices share the base, as in a config, such as ``{"tensor": 2}``; None is one device, or all where
            one does not hold it.

    Raises:
        UserError: No such model, adapter, task or trial, the run has not finished, or they do not fit together or on
            the devices.
    """
    from altojax.inference.loaded_model import load_adapted
    from altojax.inference.model_source import find_source
    from altojax.inference.settings import UseSettings
    from altojax.report.run_results import Run
    from jaxrun.config.config import check_config
    from jaxrun.config.python_values import path_of, plain
    from jaxrun.process.errors import UserError

    if adapter is True:
        raise UserError("adapter: given True, expected a folder, None for a run's own, or False for the base alone")
    named = {"task": task, "trial": trial, "dtype": dtype, "quantize": quantize, "mesh": mesh}
    settings = check_config(UseSettings, {key: plain(value, f"load: {key}") for key, value in named.items()}, "load")
    given = model.path if isinstance(model, Run) else path_of(model, "model")
    adapters = None if adapter is None else [] if adapter is False else [str(path_of(adapter, "adapter"))]
    source = find_source(str(given), **(settings.sought | {"adapters": adapters}))
    return load_adapted(source, mesh=settings.mesh)


def run_tune(
    config: "Config",
    overrides: "Sequence[str] | Mapping[str, Any]",
    *,
    overwrite: bool,
    observers: "Observers | None" = None,
    score: "ScoreAnswer | None" = None,
    console: "Console | None" = None,
) -> "tuple[int, Path]":
    """Runs a sweep on all its processes; returns the exit code, 0 or 130, and the run's folder."""
    from altojax.config.tune_config import TuneConfig
    from altojax.early_exit.callbacks import NOBODY
    from altojax.run.tuner import Tuner
    from jaxlm.devices.hosts import join
    from jaxrun.config.config import load_config

    with join("altojax") as hosts:
        with hosts.together():
            read = load_config(TuneConfig, config, overrides)
        mine: Any = {"observers": observers or NOBODY, "score": score, "console": console}
        tuner = Tuner(read, overwrite=overwrite, hosts=hosts, **mine)
        return tuner.run(), tuner.run_dir


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("altojax")
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'altojax' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__

"""Sparse language models by subnetwork training (TwIST, arXiv 2511.03983).

From Python: `train` a model, draw tickets of its `TwistRun` and export them, `load` one. What takes long is imported
when it is first asked for, so that ``import twistjax`` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from rich.console import Console

    from jaxrun.process.errors import UserError
    from twistjax.config import TwistConfig
    from twistjax.tickets.loaded_ticket import LoadedTicket
    from twistjax.tickets.run_results import TwistRun

    type Config = str | Path | Mapping[str, Any] | TwistConfig

    __version__: str

__all__ = ["LoadedTicket", "TwistRun", "UserError", "__version__", "load", "open_run", "train"]

_HOME = {
    "LoadedTicket": "twistjax.tickets.loaded_ticket",
    "TwistRun": "twistjax.tickets.run_results",
    "UserError": "jaxrun.process.errors",
}


def train(config: "Config", *, overwrite: bool = False, quiet: bool = False, **overrides: Any) -> "TwistRun":
    """Trains a model whose subnetworks are good models, as ``twistjax train`` does; resumes where it stopped.

    Ctrl-C stops it as soon as everything is saved, a second one at once. Signals are caught while it runs in the main
    thread; in another one it catches none.

    Args:
        config: A YAML file, or its content as Python values; paths, tuples and NumPy numbers are taken, too.
        overwrite: Discard the run that is in output_dir, and start anew.
        quiet: Show no progress.
        **overrides: Keys of the config and their values, such as ``seed=1`` or ``**{"subnetworks.kappa": 0.5}``.

    Returns:
        The finished run.

    Raises:
        UserError: Anything wrong with config, model or text.
        KeyboardInterrupt: It was stopped; the same call resumes it.
    """
    from jaxrun.terminal.progress import console_of
    from twistjax.tickets.run_results import TwistRun

    console = console_of(quiet=quiet)
    code, folder = run_train(config, overrides, overwrite=overwrite, console=console)
    if code:
        raise KeyboardInterrupt(f"stopped with everything saved in {folder}; the same call resumes it")
    return TwistRun(folder)


def open_run(path: "str | Path") -> "TwistRun":
    """Opens a run of ``twistjax train``, also while it is live or after it was stopped.

    Args:
        path: Its output_dir.

    Raises:
        UserError: There is none.
    """
    from twistjax.tickets.run_results import TwistRun

    return TwistRun(path)


def load(model: "str | Path", *, dtype: str = "float32") -> "LoadedTicket":
    """Loads a ticket that was exported, or any other model, to generate with and to compute losses of.

    Args:
        model: A Hugging Face folder, a .gguf file or a hub id.
        dtype: Of weights and computation: float32 or bfloat16.

    Raises:
        UserError: It cannot be read.
    """
    from jaxrun.config.python_values import path_of
    from jaxrun.process.errors import UserError
    from twistjax.tickets.loaded_ticket import load_ticket

    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"dtype: given {dtype!r}, expected float32 or bfloat16")
    return load_ticket(str(path_of(model, "model")), dtype=dtype)


def run_train(
    config: "Config",
    overrides: "Sequence[str] | Mapping[str, Any]",
    *,
    overwrite: bool,
    console: "Console | None" = None,
) -> "tuple[int, Path]":
    """Runs a training on all its processes; returns the exit code, 0 or 130, and the run's folder."""
    from jaxlm.devices.hosts import join
    from jaxrun.config.config import load_config
    from twistjax.config import TwistConfig
    from twistjax.training.trainer import Trainer

    with join("twistjax") as hosts:
        with hosts.together():
            read = load_config(TwistConfig, config, overrides)
        trainer = Trainer(read, overwrite=overwrite, hosts=hosts, console=console)
        return trainer.run(), trainer.run_dir


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("altojax")
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'twistjax' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__

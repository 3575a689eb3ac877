"""Sends points to TensorBoard, Weights & Biases or Trackio: thin adapters over the real packages.

A point becomes scalars such as ``<task>/<trial>/validation_loss`` at x = training samples seen. A tracker that cannot
start is the user's to mend; one that fails later is switched off with a warning, because training matters more.
"""

import importlib
import importlib.util
import logging
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxrun.files.atomic import write_atomic
from jaxrun.process.errors import UserError, nearest
from jaxrun.store.records import Point

_log = logging.getLogger(__name__)


PROJECT = "altojax"
"""What wandb and trackio file a run under, unless the environment names a project."""


class Tracker:
    """One place that points are sent to."""

    def __init__(self, name: str, send: Callable[[dict[str, float], int], object], close: Callable[[], object]) -> None:
        """Takes over what was started.

        Args:
            name: As in ``report_to``.
            send: Given the scalars of a point, and its training samples.
            close: Flushes and closes.
        """
        self.name, self._send, self._close = name, send, close
        self._failed = False

    def log(self, points: Sequence[Point]) -> None:
        """Sends points; after a failure it warns once and does nothing more."""

        def send() -> None:
            for point in points:
                if found := scalars(point):
                    self._send(found, point.samples)

        self._guard(send)

    def finish(self) -> None:
        """Flushes and closes."""
        self._guard(self._close)

    def _guard(self, action: Callable[[], object]) -> None:
        if self._failed:
            return
        try:
            action()
        except Exception as error:
            self._failed = True
            _log.warning("%s failed and is switched off: %s: %s", self.name, type(error).__name__, error)


def _tensorboard(module: Any, run_name: str, run_dir: Path, config: Mapping[str, Any]) -> Tracker:
    """Event files in RUN/tensorboard: ``tensorboard --logdir RUN``."""
    writer = module.SummaryWriter(logdir=str(run_dir / "tensorboard"))
    writer.add_text("config", "\n".join(f"    {key}: {value}" for key, value in config.items()), 0)

    def send(found: dict[str, float], samples: int) -> None:
        for name, value in found.items():
            writer.add_scalar(name, value, samples)
        writer.flush()

    return Tracker("tensorboard", send, writer.close)


def _wandb(module: Any, run_name: str, run_dir: Path, config: Mapping[str, Any]) -> Tracker:
    """One Weights & Biases run for the whole run; ``WANDB_MODE=offline`` and its other variables work as usual."""
    run = module.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        name=run_name,
        dir=str(run_dir),
        config=dict(config),
        id=_lasting_id(run_dir / "wandb"),
        resume="allow",
    )
    run.define_metric("samples", hidden=True)
    run.define_metric("*", step_metric="samples")
    return Tracker("wandb", lambda found, samples: run.log({**found, "samples": samples}), run.finish)


def _trackio(module: Any, run_name: str, run_dir: Path, config: Mapping[str, Any]) -> Tracker:
    """One Trackio run for the whole run; ``trackio show`` opens the dashboard."""
    project = os.environ.get("TRACKIO_PROJECT", PROJECT)
    module.init(project=project, name=run_name, config=dict(config), resume="allow")
    return Tracker("trackio", lambda found, samples: module.log(found, step=samples), module.finish)


_PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "trackio": "trackio"}
_TRACKERS = {"tensorboard": _tensorboard, "wandb": _wandb, "trackio": _trackio}


def check_trackers(report_to: Sequence[str]) -> None:
    """Refuses trackers whose package is not there; imports and starts none.

    Raises:
        UserError: The package of one is not installed.
    """
    for name in report_to:
        package = _PACKAGES.get(name)
        if package is not None and importlib.util.find_spec(package) is None:
            raise UserError(_needs(name, package, "is not installed"))


def make_trackers(
    report_to: Sequence[str], run_name: str, run_dir: str | Path, config: Mapping[str, Any]
) -> list[Tracker]:
    """Returns one started tracker per name.

    Args:
        report_to: Any of ``tensorboard``, ``wandb``, ``trackio``; ``none`` is no tracker.
        run_name: What the trackers call this run.
        run_dir: The run's folder.
        config: The run's config as plain data, shown beside its curves.

    Raises:
        UserError: An unknown name, a package that is not installed, or a tracker that cannot start.
    """
    names = [name for name in dict.fromkeys(report_to) if name != "none"]
    for name in names:
        if name not in _TRACKERS:
            valid = [*_TRACKERS, "none"]
            raise UserError(
                f"report_to: unknown tracker '{name}', expected any of {', '.join(valid)}{nearest(name, valid)}"
            )
    trackers: list[Tracker] = []
    for name in names:
        try:
            module = _require(_PACKAGES[name], name)
            trackers.append(_TRACKERS[name](module, run_name, Path(run_dir), config))
        except Exception as error:
            for started in trackers:
                started.finish()
            if isinstance(error, UserError):
                raise
            raise UserError(f"report_to: {name} cannot start ({type(error).__name__}: {error})") from error
    return trackers


def scalars(point: Point) -> dict[str, float]:
    """Returns what a point says, such as ``<task>/<trial>/validation_loss`` or ``…/grad_norm``, of what it has."""
    above = "".join(f"{part}/" for part in (point.task, point.trial) if part is not None)
    known = {f"{above}{point.name}": point.loss, f"{above}grad_norm": point.grad_norm}
    return {name: value for name, value in known.items() if value is not None}


def _require(module: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(_needs(name, module, f"cannot be imported ({error})")) from error


def _needs(name: str, package: str, why: str) -> str:
    return f"report_to: {name} needs the package {package}, which {why}; expected: pip install 'altojax[track]'"


def _lasting_id(folder: Path) -> str:
    """Returns an id that a resumed run finds again, so that its curves continue instead of starting anew."""
    path = folder / "run-id"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(path, secrets.token_hex(8))
    return path.read_text(encoding="utf-8").strip()

"""Sends points to TensorBoard, Weights & Biases or Trackio: thin adapters over the real packages.

A point becomes scalars such as ``<task>/<trial>/<split>_loss`` at x = training samples seen. A tracker that cannot
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


class Tracker:
    """One place that points are sent to.

    Attributes:
        name: As in ``report_to``.
    """

    name = ""

    def __init__(self) -> None:
        self._failed = False

    def log(self, points: Sequence[Point]) -> None:
        """Sends points; after a failure it warns once and does nothing more."""
        self._guard(lambda: self._send(points))

    def finish(self) -> None:
        """Flushes and closes."""
        self._guard(self._close)

    def _guard(self, action: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            action()
        except Exception as error:
            self._failed = True
            _log.warning("%s failed and is switched off: %s: %s", self.name, type(error).__name__, error)

    def _send(self, points: Sequence[Point]) -> None:
        raise NotImplementedError

    def _close(self) -> None:
        raise NotImplementedError


class TensorBoard(Tracker):
    """Event files in RUN/tensorboard: ``tensorboard --logdir RUN``."""

    name = "tensorboard"

    def __init__(self, run_name: str, run_dir: Path, config: Mapping[str, Any], project: str) -> None:
        super().__init__()
        module = _require(_PACKAGES[self.name], self.name)
        self._writer = module.SummaryWriter(logdir=str(run_dir / "tensorboard"))
        self._writer.add_text("config", "\n".join(f"    {key}: {value}" for key, value in config.items()), 0)

    def _send(self, points: Sequence[Point]) -> None:
        for point in points:
            for name, value in scalars(point).items():
                self._writer.add_scalar(name, value, point.samples)
        self._writer.flush()

    def _close(self) -> None:
        self._writer.close()


class WandB(Tracker):
    """One Weights & Biases run for the whole run; ``WANDB_MODE=offline`` and its other variables work as usual."""

    name = "wandb"

    def __init__(self, run_name: str, run_dir: Path, config: Mapping[str, Any], project: str) -> None:
        super().__init__()
        module = _require(_PACKAGES[self.name], self.name)
        self._run = module.init(
            project=os.environ.get("WANDB_PROJECT", project),
            name=run_name,
            dir=str(run_dir),
            config=dict(config),
            id=_lasting_id(run_dir / "wandb"),
            resume="allow",
        )
        self._run.define_metric("samples", hidden=True)
        self._run.define_metric("*", step_metric="samples")

    def _send(self, points: Sequence[Point]) -> None:
        for point in points:
            if found := scalars(point):
                self._run.log({**found, "samples": point.samples})

    def _close(self) -> None:
        self._run.finish()


class Trackio(Tracker):
    """One Trackio run for the whole run; ``trackio show`` opens the dashboard."""

    name = "trackio"

    def __init__(self, run_name: str, run_dir: Path, config: Mapping[str, Any], project: str) -> None:
        super().__init__()
        self._module = _require(_PACKAGES[self.name], self.name)
        self._module.init(
            project=os.environ.get("TRACKIO_PROJECT", project), name=run_name, config=dict(config), resume="allow"
        )

    def _send(self, points: Sequence[Point]) -> None:
        for point in points:
            if found := scalars(point):
                self._module.log(found, step=point.samples)

    def _close(self) -> None:
        self._module.finish()


_PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "trackio": "trackio"}
_TRACKERS: dict[str, Callable[[str, Path, Mapping[str, Any], str], Tracker]] = {
    tracker.name: tracker for tracker in (TensorBoard, WandB, Trackio)
}


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
    report_to: Sequence[str], run_name: str, run_dir: str | Path, config: Mapping[str, Any], *, project: str = "altojax"
) -> list[Tracker]:
    """Returns one started tracker per name.

    Args:
        report_to: Any of ``tensorboard``, ``wandb``, ``trackio``; ``none`` is no tracker.
        run_name: What the trackers call this run.
        run_dir: The run's folder.
        config: The run's config as plain data, shown beside its curves.
        project: The project that wandb and trackio file the run under, unless the environment names one.

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
            trackers.append(_TRACKERS[name](run_name, Path(run_dir), config, project))
        except Exception as error:
            for started in trackers:
                started.finish()
            if isinstance(error, UserError):
                raise
            raise UserError(f"report_to: {name} cannot start ({type(error).__name__}: {error})") from error
    return trackers


def scalars(point: Point) -> dict[str, float]:
    """Returns what a point says: ``<task>/<trial>/<split>_loss`` and ``…/grad_norm``, without parts that it lacks."""
    above = "".join(f"{part}/" for part in (point.task, point.trial) if part is not None)
    known = {f"{above}{point.split}_loss": point.loss, f"{above}grad_norm": point.grad_norm}
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

"""Trials at rest: parked states and best adapters, in host memory and, at each checkpoint, on disk."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax

from altojax.adapters.peft_files import read_adapter
from altojax.device.slots import Snapshot
from jaxlm.devices.hosts import ALONE, Hosts
from jaxlm.families.config import ModelConfig
from jaxlm.files.checkpoint import load_tree, save_tree
from jaxrun.process.errors import UserError
from jaxrun.store.run_folder import folder_in
from jaxrun.store.run_log import CHECKPOINTS, is_checkpointed

Kind = Literal["state", "best"]


@dataclass(frozen=True)
class OnDevice:
    """What a parked trial's place on the device holds of it.

    Attributes:
        read: Copies it to the host.
    """

    read: Callable[[], Any]


class Snapshots:
    """Keeps, by trial, the state it resumes from and the adapter of its best evaluation.

    What is parked on the device stays there, and is written from there at a checkpoint.

    What changed since the last checkpoint is written into folders of its own, never over an older one; the journal's
    checkpoint names them, and only then may the older ones go. An adapter that its trial's PEFT folder has already is
    not written once more: a checkpoint names that folder.
    """

    def __init__(self, run_dir: str | Path):
        """Starts empty."""
        self.run_dir = Path(run_dir)
        self._held: dict[tuple[Kind, str], Any] = {}
        self._names: dict[tuple[Kind, str], str] = {}

    def put(self, kind: Kind, trial: str, content: Any) -> None:
        """Replaces the snapshot of a trial (``task/name``)."""
        self.drop(kind, trial)
        self._held[kind, trial] = content

    def bring_home(self) -> None:
        """Copies what is on the device to the host."""
        self._held = {name: on_host(content) for name, content in self._held.items()}

    def get(self, kind: Kind, trial: str) -> Any:
        """Returns the snapshot of a trial."""
        return self._held[kind, trial]

    def has(self, kind: Kind, trial: str) -> bool:
        """Whether a trial has a snapshot."""
        return (kind, trial) in self._held

    def drop(self, kind: Kind, trial: str) -> None:
        """Drops the snapshot of a trial, if any."""
        self._held.pop((kind, trial), None)
        self._names.pop((kind, trial), None)

    def unwritten(self, trial: str) -> bool:
        """Whether a trial has a best adapter, and no folder of its own with it."""
        return self.has("best", trial) and self.folder_of(trial) is None

    def wrote(self, trial: str, content: Any = None) -> None:
        """Notes that a trial's best adapter is in the PEFT folder of the trial.

        Args:
            trial: The trial.
            content: The adapter on the host, which takes the place of one on the device; None keeps what is held.
        """
        self._names["best", trial] = trial
        if content is not None:
            self._held["best", trial] = content

    def folder_of(self, trial: str) -> Path | None:
        """Returns the PEFT folder of a trial's best adapter, where it has been written."""
        name = self._names.get(("best", trial))
        return None if name is None or is_checkpointed(name) else self.run_dir / name

    def save(self, tick: int, live: Mapping[str, Snapshot]) -> dict[str, dict[str, str]]:
        """Writes the snapshots that no folder holds yet.

        Args:
            tick: Names the new folders.
            live: State of every trial that is in a slot now.

        Returns:
            {"state": {trial: folder}, "best": {trial: folder}}, folders relative to the run's.
        """
        for trial, snapshot in live.items():
            self._names["state", trial] = self._write("state", trial, tick, snapshot)
        for (kind, trial), content in self._held.items():
            if (kind, trial) not in self._names:
                self._names[kind, trial] = self._write(kind, trial, tick, content)
        named: dict[str, dict[str, str]] = {"state": {}, "best": {}}
        for (kind, trial), name in sorted(self._names.items()):
            named[kind][trial] = name
        for trial in live:
            del self._names["state", trial]
        return named

    def restore(
        self,
        named: Mapping[str, Mapping[str, str]],
        like: Mapping[str, Mapping[str, Any]],
        configs: Mapping[str, ModelConfig],
        hosts: Hosts = ALONE,
    ) -> None:
        """Reads back the folders of `save`; of several processes the leader reads, and sends it to the others.

        A PEFT folder that was removed since is passed over: its trial has no adapter any more.

        Args:
            named: What `save` returned.
            like: Trees of arrays of the same shapes, by kind and trial.
            configs: The base of every trial.
            hosts: The processes of the run; all of them must call it.

        Raises:
            UserError: A folder is damaged, or one of a checkpoint is missing.
        """
        kinds: tuple[Kind, ...] = ("state", "best")
        every = [(kind, trial, name) for kind in kinds for trial, name in named[kind].items()]
        with hosts.together():
            there = [is_checkpointed(name) or (self.run_dir / name).is_dir() for *_, name in every]
        there = hosts.decide(there)
        folders = {(kind, trial): name for (kind, trial, name), kept in zip(every, there, strict=True) if kept}
        shapes = [like[kind][trial] for kind, trial in folders]
        with hosts.together():
            found = zip(folders.items(), shapes, strict=True) if hosts.leads else ()
            read = [self._read(trial, name, one, configs) for ((_, trial), name), one in found]
        self._held.update(zip(folders, hosts.broadcast(read, shapes), strict=True))
        self._names.update(folders)

    def _read(self, trial: str, name: str, like: Any, configs: Mapping[str, ModelConfig]) -> Any:
        path = self.run_dir / name
        if is_checkpointed(name):
            return load_tree(path, like)
        adapter = {key: {"a": a, "b": b} for key, (a, b) in read_adapter(path, configs[trial])[1].items()}
        wanted, found = ([leaf.shape for leaf in jax.tree.leaves(tree)] for tree in (like, adapter))
        if wanted != found:
            raise UserError(f"{path}: is another adapter than the trial wrote, expected it unchanged")
        return adapter

    def _write(self, kind: Kind, trial: str, tick: int, content: Any) -> str:
        name = f"{CHECKPOINTS}/{trial.replace('/', '.')}.{kind}.{tick}"
        folder_in(self.run_dir, CHECKPOINTS)
        save_tree(self.run_dir / name, on_host(content))
        return name


def on_host(content: Any) -> Any:
    """Returns a snapshot as it is, or a copy of one on the device."""
    return content.read() if isinstance(content, OnDevice) else content

"""A trial's best adapter as a PEFT folder: written as the trial ends, while others train."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from altojax.adapters.peft_files import AdapterSpec, export_adapter
from altojax.early_exit.metric import metric_text
from altojax.report.held_out import HeldOut
from altojax.run.prepare import PreparedBase, PreparedRun, TaskData
from altojax.run.snapshots import Snapshots, on_host
from altojax.run.trial import Trial, TrialProgress
from jaxrun.process.background import Background
from jaxrun.process.errors import UserError
from jaxrun.process.interrupt import StopAsked
from jaxrun.store.run_folder import folder_in

WRITERS = 2
"""Adapters that are written at a time."""
ASKING_S = 0.2
"""Seconds between looks whether the run was asked to stop, while adapters are waited for."""


class AdapterWriter:
    """Writes adapters of trials that have ended, beside the training of the others.

    One that cannot be written stays in the snapshots; the end of the run tries again, and says why it cannot.
    """

    def __init__(
        self, run_dir: Path, prepared: PreparedRun, snapshots: Snapshots, progress: Sequence[TrialProgress]
    ) -> None:
        """Writes nothing yet.

        Args:
            run_dir: The run's folder.
            prepared: Its trials.
            snapshots: Holds the adapters; learns which are in folders.
            progress: Of all trials, in order.
        """
        self._run_dir, self._prepared, self._snapshots, self._progress = run_dir, prepared, snapshots, progress
        self._begun: dict[str, Future[Any]] = {}
        self._threads = Background(WRITERS, "write adapters")
        self._stopped = False

    def advance(self, base: PreparedBase) -> None:
        """Begins to write the adapters of trials that have ended, and notes those that are written."""
        for trial in base.trials:
            name, state = trial.full_name, self._progress[trial.index]
            ended = state.phase == "done" and state.slot is None
            if ended and name not in self._begun and self._snapshots.unwritten(name):
                work = partial(self._write, base, trial, replace(state))
                self._begun[name] = self._threads.submit(work)
        self._note_written()

    def finish(self, asked: StopAsked) -> None:
        """Waits until all that is begun is written; once asked to stop, until what is being written is."""
        while waiting := [future for future in self._begun.values() if not future.done()]:
            self._stopped = self._stopped or asked.requested
            wait(waiting, ASKING_S)
        self._note_written()

    def _note_written(self) -> None:
        for name, future in list(self._begun.items()):
            if future.done() and future.exception() is None and (content := future.result()) is not None:
                self._snapshots.wrote(name, content)
                del self._begun[name]

    def _write(self, base: PreparedBase, trial: Trial, state: TrialProgress) -> Any:
        if self._stopped:
            return None
        content = on_host(self._snapshots.get("best", trial.full_name))
        folder = folder_in(self._run_dir, trial.task) / trial.name
        write_adapter(folder, base, trial, state, self._prepared.data[trial.task], content)
        return content


def write_adapter(
    folder: Path,
    base: PreparedBase,
    trial: Trial,
    state: TrialProgress,
    data: TaskData,
    stored: Mapping[str, Mapping[str, np.ndarray]],
    held_out: HeldOut | None = None,
) -> None:
    """Writes a trial's adapter, and reads it back before it takes its place.

    Args:
        folder: Where to.
        base: Its base.
        trial: The trial.
        state: How far it came.
        data: Its task's.
        stored: The adapter, on the host.
        held_out: What was measured of it on held-out rows.

    Raises:
        UserError: The folder cannot be written.
    """
    adapter = {key: (np.asarray(pair["a"]), np.asarray(pair["b"])) for key, pair in stored.items()}
    spec, card = spec_of(base, trial), card_of(base, trial, state, data, held_out)
    try:
        export_adapter(folder, spec, adapter, base.config, base.tokenizers[trial.task], card, ends=data.ends)
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror or error}, expected a folder that can be written") from error


def spec_of(base: PreparedBase, trial: Trial) -> AdapterSpec:
    """Returns the description of a trial's adapter."""
    one = trial.config
    return AdapterSpec(
        base_model_name=base.spec.model_name_or_path,
        rank=one.lora_rank,
        alpha=one.alpha,
        use_rslora=one.use_rslora,
        dropout=one.lora_dropout,
        target_modules=one.target_modules,
        target_parameters=one.target_parameters or (),
        modules=trial.modules,
        base_quantization=base.form,
    )


def card_of(
    base: PreparedBase, trial: Trial, state: TrialProgress, data: TaskData, held_out: HeldOut | None
) -> dict[str, Any]:
    """Returns the facts on an adapter's card."""
    stops = [str(base.tokenizers[trial.task].convert_ids_to_tokens(token)) for token in data.ends]
    return {
        "task": trial.task,
        "trial": trial.name,
        "validation loss": f"{state.best_loss:.6f}",
        **({"validation metric": metric_text(data.select_by, *state.best_metric[:2])} if state.best_metric else {}),
        **({} if held_out is None else {"held-out test": held_out.sentence()}),
        "step": state.best_step,
        "adapter": f"running average, window {base.averages[0]:g}" if state.best_average else "as trained",
        "ended": state.reason,
        "ends a text": ", ".join(stops) or "nothing",
        **({} if trial.start is None else {"started from": str(trial.start)}),
        **({} if data.dated is None else {"date given to the chat template": data.dated.isoformat()}),
        **{name: value for name, value in trial.config.model_dump(mode="json").items() if value is not None},
    }

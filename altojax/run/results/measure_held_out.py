"""Measures the winner of a task and the base alone on held-out rows, once, when the winner's adapter is exported.

What was measured is kept as a fact of the run, by the bytes of the adapter: no return to a checkpoint takes it away, so
no adapter is measured twice, and of another one (a run that trials were added to) it is known that it is a later look.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from altojax.adapters.peft_files import WEIGHTS_NAME, Adapter, read_adapter
from altojax.device.batch import TokenRow
from altojax.device.executor import Executor
from altojax.device.memory import evaluation_rows
from altojax.device.objectives.objective import Settled
from altojax.device.slots import Snapshot
from altojax.report.held_out import LOOKS, HeldOut
from altojax.run.load_base import LoadedBase
from altojax.run.prepare import PreparedBase
from altojax.run.trial import Trial
from jaxlm.devices.hosts import Hosts
from jaxrun.files.atomic import digest_of
from jaxrun.process.interrupt import StopAsked
from jaxrun.store.records import record_errors
from jaxrun.store.run_folder import JOURNAL_NAME
from jaxrun.store.run_log import RunLog

RIGHT = "rewards/accuracies"
"""Of an objective's metrics the share of pairs whose chosen answer has the higher reward."""
_CAPACITY = "capacity"
"""Key of the journal's fact that says how many tokens a training step of a base may hold, by its first task."""


def measure_held_out(
    folder: Path,
    base: PreparedBase,
    trial: Trial,
    rows: Sequence[TokenRow],
    like: Any,
    run_log: RunLog,
    loaded: LoadedBase,
    hosts: Hosts,
    asked: StopAsked | None,
) -> HeldOut:
    """Returns the losses of an exported adapter and of its base over rows; measures them where the journal has none.

    Args:
        folder: Of the adapter; the leader's.
        base: Its base.
        trial: Its trial.
        rows: The rows.
        like: Arrays of its shapes: the leader reads the files, and sends it to the others.
        run_log: The record.
        loaded: Loads the base where it is not.
        hosts: The processes of the run; all of them must call it.
        asked: Asks it to stop.

    Raises:
        UserError: The adapter cannot be read, or the record not be written.
        Stopped: It was asked to.
    """
    with hosts.together():
        adapter: Adapter = read_adapter(folder, base.config)[1] if hosts.leads else {}
        digest = digest_of(folder / WEIGHTS_NAME) if hosts.leads else ""
        known: dict[str, dict[str, Any]] = run_log.noted(LOOKS, {})
        before = known.get(trial.task, {})
        said = [before.get(digest), len(before), run_log.noted(_CAPACITY, {})[base.tasks[0]]] if hosts.leads else None
    found, looks, capacity = hosts.decide(said)
    if found is not None:
        with record_errors(folder.parent.parent / JOURNAL_NAME):
            return HeldOut.from_payload(found)
    read = {key: {"a": a, "b": b} for key, (a, b) in adapter.items()}
    exported = hosts.broadcast(read if hosts.leads else None, like)
    executor = loaded.executor(base)
    at_once = evaluation_rows(capacity, executor.plan.rows, executor.sharding.own_slots)
    adapted, alone, counts, hits = row_losses(executor, exported, trial.hyper(), rows, at_once, asked)
    accuracy = sum(hits) / len(hits) if hits else None
    result = replace(HeldOut.of_rows(trial.name, adapted, alone, counts), look=looks + 1, accuracy=accuracy)
    with hosts.together():
        run_log.note(LOOKS, {**known, trial.task: {**before, digest: result.to_payload()}})
    return result


def note_capacity(base: PreparedBase, rows: int, run_log: RunLog) -> None:
    """Keeps how many rows a training step of a base may hold, for when its winners are measured."""
    run_log.note(_CAPACITY, {**run_log.noted(_CAPACITY, {}), base.tasks[0]: rows})


def row_losses(
    executor: Executor,
    adapter: dict[str, dict[str, np.ndarray]],
    hyper: Mapping[str, float],
    rows: Sequence[TokenRow],
    rows_at_once: int,
    asked: StopAsked | None = None,
) -> tuple[list[float], list[float], list[int], list[float]]:
    """Returns the loss of every sample with an adapter, the same of the base alone, and what each is averaged over.

    Of pairs also whether the chosen answer has the higher reward with the adapter, as 1 or 0.

    All slots hold the same, and each evaluates a sample of its own: the evaluation has a sum for every slot. What the
    slots held is gone.

    Args:
        executor: With the base.
        adapter: As `altojax.device.slots.Snapshot` has it.
        hyper: As of `Executor.put`; the scale of B·A and the numbers of the objective matter here.
        rows: The rows, sample by sample.
        rows_at_once: Rows of a batch on one device.
        asked: Asks it to stop.

    Returns:
        Sums of the losses with the adapter and without, counts, and for pairs whether each is right, in the order of
        the samples.

    Raises:
        Stopped: It was asked to.
    """
    objective, slots = executor.plan.objective, executor.plan.slots
    numbers = {name: hyper[name] for name in objective.trial_values}
    samples = [rows[at : at + objective.group] for at in range(0, len(rows), objective.group)]
    counts = [objective.count(sample) for sample in samples]
    # The longest first, whose shape holds the others.
    ordered = sorted(range(len(samples)), key=lambda one: -max(len(row.tokens) for row in samples[one]))
    filled: Snapshot = {"adapters": adapter, "steps": 0}
    both: list[list[float]] = []
    right: dict[int, float] = {}
    for holds in (True, False):
        for slot in range(slots):
            executor.put(slot, filled if holds else {"adapters": {}, "steps": 0}, hyper)
        sums = [0.0] * len(samples)
        for at in range(0, len(ordered), slots):
            now = ordered[at : at + slots]
            due = [(slot, samples[one]) for slot, one in enumerate(now)]
            measured = executor.measure(due, rows_at_once, asked=asked)
            for slot, one in enumerate(now):
                sums[one] = measured[slot]["loss"] * counts[one]
                if holds and RIGHT in measured[slot]:
                    right[one] = measured[slot][RIGHT]
        if isinstance(objective, Settled) and objective.settles(numbers):
            losses = executor.row_losses([(0, rows)], rows_at_once, asked=asked)[0]
            sums = objective.settle(rows, losses, numbers)["loss"].tolist()
        both.append(sums)
    return both[0], both[1], counts, [right[one] for one in sorted(right)]

"""The end of a run: every trial's best adapter as a PEFT folder, the best of each task and its test, tables, report."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from altojax.adapters.model_card import model_card
from altojax.adapters.peft_files import Adapter, AdapterSpec, export_adapter
from altojax.config.tune_config import TuneConfig
from altojax.device.executor import Executor
from altojax.device.multi_lora.routing import Routing
from altojax.early_exit.metric import metric_text
from altojax.early_exit.rule import SelectBy
from altojax.report.held_out import HeldOut
from altojax.report.run_record import record_of
from altojax.report.worth import worth_line
from altojax.run.live_table import TrialTable
from altojax.run.load_base import LoadedBase
from altojax.run.loop.starts import best_of
from altojax.run.prepare import PreparedBase, PreparedRun, TaskData
from altojax.run.results.measure_held_out import measure_held_out
from altojax.run.snapshots import Snapshots
from altojax.run.trial import Trial, TrialProgress
from jaxlm.devices.hosts import ALONE, Hosts
from jaxlm.models.transformer import Transformer
from jaxlm.quantised.formats import names_of
from jaxrun.files.atomic import write_atomic
from jaxrun.files.folders import remove_leftovers
from jaxrun.process.errors import UserError
from jaxrun.process.interrupt import StopAsked
from jaxrun.store.records import Event, record_errors
from jaxrun.store.run_folder import JOURNAL_NAME, folder_in
from jaxrun.store.run_log import RunLog
from jaxrun.terminal.sizes import counted

PROBE_TOKENS = 16


class Probe:
    """Compares logits of two adapters on the base they were trained on, in one forward pass."""

    def __init__(self, executor: Executor):
        """Uses the first slot of `executor`; compiles its forward pass once."""
        self.executor = executor
        slots, vocab = executor.sharding.own_slots, executor.config.vocab_size
        self._tokens = np.random.default_rng(0).integers(0, vocab, (1, PROBE_TOKENS)).astype(np.int32)

        def logits(model: Transformer, scale: jax.Array, tokens: jax.Array) -> jax.Array:
            routing = Routing(jnp.zeros(1, jnp.int32), jnp.full(slots, scale, jnp.float32))
            hidden = model(tokens, routing=routing)
            return model.logits(hidden[0].astype(jnp.float32))

        self._logits = executor.first_slot(logits)

    def logits(self, adapter: dict[str, dict[str, np.ndarray]], scale: float) -> np.ndarray:
        """Returns float32 [tokens, vocab] of the adapted base on fixed tokens."""
        self.executor.put(0, {"adapters": adapter, "steps": 0}, {})
        return np.asarray(self._logits(np.float32(scale), self._tokens))


def finish_run(
    config: TuneConfig,
    prepared: PreparedRun,
    snapshots: Snapshots,
    progress: Sequence[TrialProgress],
    run_log: RunLog,
    screen: TrialTable,
    loaded: LoadedBase,
    hosts: Hosts = ALONE,
    asked: StopAsked | None = None,
) -> None:
    """Exports and measures what is not yet, and writes the tables and the report; the leader alone writes.

    Args:
        config: The run.
        prepared: Its models and trials.
        snapshots: Holds the best adapters.
        progress: Of all trials, in order.
        run_log: The record; says what an earlier, interrupted finish has done.
        screen: Prints the best of each task.
        loaded: Has the last base's executor, where a run has not ended before.
        hosts: The processes of the run; all of them must call it.
        asked: Asks it to stop; None where several processes must agree on it first.

    Raises:
        UserError: A file cannot be written.
        Stopped: It was asked to, while it measured.
    """
    run_dir = Path(config.output_dir)
    tick = max((event.tick for event in run_log.events()), default=0)
    with record_errors(run_dir / JOURNAL_NAME):
        measured = {(one.task, one.trial): HeldOut.from_payload(one.payload) for one in run_log.events("test")}
    with hosts.together():
        todo = _not_exported(config, prepared, snapshots, progress, run_log, screen) if hosts.leads else None
    for base, exports in zip(prepared.bases, hosts.decide(todo), strict=True):
        if exports:
            screen.say(f"exporting {counted(len(exports), 'adapter')}")
            probe = Probe(loaded.executor(base))
            for index, name in exports:
                trial, state = base.trials[index - base.trials[0].index], progress[index]
                with hosts.together():
                    data = prepared.data[trial.task]
                    folder = folder_in(run_dir, trial.task) if hosts.leads else run_dir / trial.task
                    known = measured.get((trial.task, trial.name))
                    _export(folder / name, base, trial, state, data, snapshots, probe, hosts, known)
                    run_log.add(tick, [Event("export", trial.task, name, {"step": state.best_step})], [])
            del probe  # which would hold this base while the next is loaded
        with hosts.together():
            if hosts.leads:
                _announce_best(run_dir, base, progress, config.select_by, tick, run_log, screen)
        tested = hosts.decide([task for task, _ in measured])
        for task, trial in best_of(base, progress).items():
            data = prepared.data[task]
            if trial is None or not data.test or task in tested:
                continue
            screen.say(f"{task}: measuring {trial.name} and the base on {counted(len(data.test), 'test row')}")
            stored = snapshots.get("best", trial.full_name)
            found = measure_held_out(
                run_dir / task / "best", base, trial, data.test, stored, run_log, loaded, hosts, asked
            )
            with hosts.together():
                if hosts.leads:
                    _write_cards(run_dir / task, base, trial, progress[trial.index], data, found)
                event = Event("test", task, trial.name, found.to_payload())
                run_log.add(tick, [event], [])
                screen.report([event])
    from altojax.report.write_report import write_report  # matplotlib takes long to import

    with hosts.together():
        if not run_log.events("finish"):
            run_log.add(tick, [Event("finish")], [])
            if hosts.leads:
                record = record_of(run_dir)
                for line in filter(None, (worth_line(record, task) for task in record.tasks)):
                    screen.say(line)
        for path in write_report(run_dir) if hosts.leads else ():
            screen.say(f"wrote {path}")


def _not_exported(
    config: TuneConfig,
    prepared: PreparedRun,
    snapshots: Snapshots,
    progress: Sequence[TrialProgress],
    run_log: RunLog,
    screen: TrialTable,
) -> list[list[tuple[int, str]]]:
    """Returns, for every base, (trial, name of its folder) still to be exported; removes leftovers."""
    run_dir = Path(config.output_dir)
    exported = {(event.task, event.trial) for event in run_log.events("export")}
    for task in prepared.data:
        if (run_dir / task).is_dir():
            remove_leftovers(folder_in(run_dir, task))
    todo = []
    for base in prepared.bases:
        every = [one for one in base.trials if math.isfinite(progress[one.index].best_loss)]
        held = [(trial, trial.name) for trial in every if snapshots.has("best", trial.full_name)]
        named = held if config.keep_adapters == "all" else []
        if named and len(held) < len(every):
            gone = len(every) - len(held)
            screen.say(f"not written: {counted(gone, 'adapter')}, whose trials ended while keep_adapters was best")
        named += [(trial, "best") for trial in best_of(base, progress).values() if trial is not None]
        todo.append(
            [
                (trial.index, name)
                for trial, name in named
                if (trial.task, name) not in exported or not (run_dir / trial.task / name).exists()
            ]
        )
    return todo


def _announce_best(
    run_dir: Path,
    base: PreparedBase,
    progress: Sequence[TrialProgress],
    select_by: SelectBy,
    tick: int,
    run_log: RunLog,
    screen: TrialTable,
) -> None:
    announced = {event.task for event in run_log.events("best")}
    base_loss = {event.task: event.payload["loss"] for event in run_log.events("base_loss")}
    for task, trial in best_of(base, progress).items():
        if task in announced:
            continue
        if trial is None:
            screen.say(f"{task}: no trial reached a finite validation loss; there is no adapter")
            continue
        state = progress[trial.index]
        payload = {"loss": state.best_loss, "step": state.best_step, "average": state.best_average}
        payload["base"] = base_loss[task]
        payload |= zip(("metric", "metric_error"), state.best_metric, strict=False)
        run_log.add(tick, [Event("best", task, trial.name, payload)], [])
        losses = f"validation loss {state.best_loss:.4f} (base {base_loss[task]:.4f})"
        if state.best_metric:
            losses = f"{metric_text(select_by, *state.best_metric)}, {losses}"
        screen.say(f"{task}: best is {trial.name}, {losses}; its adapter is {run_dir / task / 'best'}")


def _export(
    folder: Path,
    base: PreparedBase,
    trial: Trial,
    state: TrialProgress,
    data: TaskData,
    snapshots: Snapshots,
    probe: Probe,
    hosts: Hosts,
    held_out: HeldOut | None,
) -> None:
    """Writes an adapter, and reads it back: all processes compute with what the leader has read."""
    stored = snapshots.get("best", f"{trial.task}/{trial.name}")
    adapter: Adapter = {key: (np.asarray(pair["a"]), np.asarray(pair["b"])) for key, pair in stored.items()}
    spec = _spec(base, trial)
    live = probe.logits(stored, spec.scale)

    asked = False

    def moved(reloaded: Adapter | None) -> float:
        read = None if reloaded is None else {key: {"a": a, "b": b} for key, (a, b) in reloaded.items()}
        return float(np.abs(probe.logits(hosts.broadcast(read, stored), spec.scale) - live).max())

    def check(reloaded: Adapter) -> float:
        nonlocal asked
        asked = hosts.decide(True)
        return moved(reloaded)

    if not hosts.leads:
        if hosts.decide(None):
            moved(None)
        return

    tokenizer, card = base.tokenizers[trial.task], _card(base, trial, state, data, held_out)
    try:
        export_adapter(folder, spec, adapter, base.config, tokenizer, card, check, ends=data.ends)
    except (OSError, UserError) as error:
        if not asked:
            hosts.decide(False)
        if isinstance(error, UserError):
            raise
        raise UserError(f"{folder}: {error.strerror or error}, expected a folder that can be written") from error


def _spec(base: PreparedBase, trial: Trial) -> AdapterSpec:
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
        base_quantization=names_of(base.forms),
    )


def _card(
    base: PreparedBase, trial: Trial, state: TrialProgress, data: TaskData, held_out: HeldOut | None
) -> dict[str, Any]:
    """Returns the facts on an adapter's card."""
    stops = [str(base.tokenizers[trial.task].convert_ids_to_tokens(token)) for token in data.ends]
    return {
        "task": trial.task,
        "trial": trial.name,
        "validation loss": f"{state.best_loss:.6f}",
        **({"validation metric": metric_text(data.select_by, *state.best_metric)} if state.best_metric else {}),
        **({} if held_out is None else {"held-out test": held_out.sentence()}),
        "step": state.best_step,
        "adapter": f"running average, window {base.averages[0]:g}" if state.best_average else "as trained",
        **({} if trial.start is None else {"started from": str(trial.start)}),
        "ended": state.reason,
        "ends a text": ", ".join(stops) or "nothing",
        **({} if data.dated is None else {"date given to the chat template": data.dated.isoformat()}),
        **{name: value for name, value in trial.config.model_dump(mode="json").items() if value is not None},
    }


def _write_cards(
    folder: Path, base: PreparedBase, trial: Trial, state: TrialProgress, data: TaskData, held_out: HeldOut
) -> None:
    """Writes the cards of a task's winner, under both of its names, anew with what was measured of it."""
    card = model_card(_spec(base, trial), _card(base, trial, state, data, held_out), whole=base.config.whole)
    for name in ("best", trial.name):
        if (folder / name).is_dir():
            write_atomic(folder / name / "README.md", card)

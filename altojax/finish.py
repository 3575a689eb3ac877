"""The end of a run: every trial's best adapter as a PEFT folder, the best of each task, the tables and the report."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from altojax.executor import Executor
from altojax.lora import Routing
from altojax.peft import Adapter, AdapterSpec, export_adapter
from altojax.report import write_report
from altojax.screen import Screen
from altojax.search import TuneConfig
from altojax.setup import Base, Prepared, build_executor
from altojax.trial import Progress, Trial
from altojax.vault import Vault
from harness.errors import UserError
from harness.files import remove_leftovers
from harness.journal import Journal
from harness.records import Event

PROBE_TOKENS = 16


class Probe:
    """Compares logits of two adapters on the base they were trained on, in one forward pass."""

    def __init__(self, executor: Executor):
        """Uses the first slot of `executor`; compiles its forward pass once."""
        self.executor = executor
        graph, slots = executor.frozen.graph, executor.spread.own_slots
        vocab = executor.config.vocab_size
        self._tokens = np.random.default_rng(0).integers(0, vocab, (1, PROBE_TOKENS)).astype(np.int32)

        def logits(weights: Any, adapters: Any, scale: jax.Array, tokens: jax.Array) -> jax.Array:
            model = nnx.merge(graph, adapters, weights)
            routing = Routing(jnp.zeros(1, jnp.int32), jnp.full(slots, scale, jnp.float32))
            hidden = model(tokens, routing=routing)
            return hidden[0].astype(jnp.float32) @ model.head_kernel().astype(jnp.float32).T

        self._logits = executor.spread.first_slot(logits, executor.frozen.weights, executor.state)

    def logits(self, adapter: dict[str, dict[str, np.ndarray]], scale: float) -> np.ndarray:
        """Returns float32 [tokens, vocab] of the adapted base on fixed tokens."""
        zeros = {key: {half: np.zeros_like(a) for half, a in pair.items()} for key, pair in adapter.items()}
        content = {"adapters": adapter, "mu": zeros, "nu": zeros, "gathered": zeros, "steps": 0}
        self.executor.put(0, content, {})
        weights, adapters = self.executor.frozen.weights, self.executor.state.adapters
        return np.asarray(self._logits(weights, adapters, np.float32(scale), self._tokens))


def finish_run(
    config: TuneConfig,
    prepared: Prepared,
    vault: Vault,
    progress: Sequence[Progress],
    journal: Journal,
    screen: Screen,
    executor: Executor | None,
) -> None:
    """Exports what is not exported yet, then writes the tables and the report.

    Args:
        config: The run.
        prepared: Its models and trials.
        vault: Holds the best adapters.
        progress: Of all trials, in order.
        journal: The record; says what an earlier, interrupted finish has done.
        screen: Is told the best of each task.
        executor: The last base's, still loaded; None when a finished run is run again.
    """
    run_dir = Path(config.output_dir)
    exported = {(event.task, event.trial) for event in journal.events("export")}
    tick = max((event.tick for event in journal.events()), default=0)
    for task in prepared.data:
        if (run_dir / task).is_dir():
            remove_leftovers(run_dir / task)
    for base in prepared.bases:
        pairs = [(trial, progress[trial.index]) for trial in base.trials]
        best = {task: _best([pair for pair in pairs if pair[0].task == task]) for task in base.tasks}
        todo = [(t, p, run_dir / t.task / t.name, (t.task, t.name)) for t, p in pairs if math.isfinite(p.best_loss)]
        todo += [(t, p, run_dir / t.task / "best", (t.task, "best")) for t, p in best.values() if t is not None]
        todo = [one for one in todo if one[3] not in exported or not one[2].exists()]
        if todo:
            if executor is None or executor.config is not base.config:
                executor = build_executor(config, base, seen={})
            screen.say(f"exporting {len(todo)} adapters")
            probe = Probe(executor)
            for trial, state, folder, names in todo:
                _export(folder, base, trial, state, vault, probe)
                journal.append(tick, [Event("export", *names, {"step": state.best_step})])
        for task, (trial, state) in best.items():
            if any(event.task == task for event in journal.events("best")):
                continue
            if trial is None:
                screen.say(f"{task}: no trial reached a finite validation loss; there is no adapter")
                continue
            base_loss = next(event.payload["loss"] for event in journal.events("base_loss") if event.task == task)
            event = Event(
                "best", task, trial.name, {"loss": state.best_loss, "step": state.best_step, "base": base_loss}
            )
            journal.append(tick, [event])
            screen.tell([event])
    if not journal.events("finish"):
        journal.append(tick, [Event("finish")])
    for path in write_report(run_dir):
        screen.say(f"wrote {path}")


def _best(pairs: Sequence[tuple[Trial, Progress]]) -> tuple[Any, Any]:
    finite = [(trial, state) for trial, state in pairs if math.isfinite(state.best_loss)]
    return min(finite, key=lambda pair: (pair[1].best_loss, pair[0].index)) if finite else (None, None)


def _export(folder: Path, base: Base, trial: Trial, state: Progress, vault: Vault, probe: Probe) -> None:
    one = trial.config
    stored = vault.get("best", f"{trial.task}/{trial.name}")
    adapter: Adapter = {key: (np.asarray(pair["a"]), np.asarray(pair["b"])) for key, pair in stored.items()}
    spec = AdapterSpec(
        base_model_name=base.spec.model_name_or_path,
        rank=one.lora_rank,
        alpha=one.alpha,
        use_rslora=one.use_rslora,
        dropout=one.lora_dropout,
        target_modules=one.target_modules,
        modules=trial.modules,
    )
    live = probe.logits(stored, spec.scale)

    def moved(reloaded: Adapter) -> float:
        again = {key: {"a": a, "b": b} for key, (a, b) in reloaded.items()}
        return float(np.abs(probe.logits(again, spec.scale) - live).max())

    card = {
        "task": trial.task,
        "trial": trial.name,
        "validation loss": f"{state.best_loss:.6f}",
        "step": state.best_step,
        "ended": state.reason,
        **{name: value for name, value in one.model_dump(mode="json").items() if value is not None},
    }
    try:
        export_adapter(folder, spec, adapter, base.config, base.tokenizer, card, moved)
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror or error}, expected a folder that can be written") from error

"""Journals of runs that never were, shaped as real ones are."""

import json
import math
from pathlib import Path

import numpy as np
from adapters import random_adapter

from altojax.adapters.peft_files import export_adapter
from altojax.config.tune_config import TuneConfig
from jaxlm.files.tokenizer import load_tokenizer
from jaxlm.files.weights import read_model_config
from jaxrun.config.config import dump_config
from jaxrun.store.journal import Journal
from jaxrun.store.records import Event, Point

TINY = Path(__file__).parent.parent.parent / "configs" / "tiny"
BASE = {"reviews": 3.1, "sql": 2.4, "math": 1.9}


def write_run(
    run_dir: Path, *, tasks=("reviews", "sql", "math"), trials=8, slots=6, live_at: int | None = None, seed=0
) -> Path:
    """Writes the journal of a run: curves with noise, rungs, parking, every kind of end; `live_at` stops at a tick."""
    random = np.random.default_rng(seed)
    with Journal.open(run_dir, config_text="output_dir: x\n", identity="d") as journal:
        journal.set("trials", [facts(task, i, trials) for task in tasks for i in range(trials)])
        journal.set(
            "clock",
            {
                "whole_s": 1260.5,
                "training_s": 1100.0,
                "evaluation_s": 90.0,
                "exchange_s": 11.0,
                "checkpoint_s": 3.0,
                "alone_s": 6210.0,
                "compiles": 5,
                "compile_s": 31.0,
                "tokens_per_s": 18250.0,
                "capacity_tokens": 16384,
                "resident_bytes": 3 * 2**30,
            },
        )
        record = _Recorder(journal, live_at)
        start = {"device": "One Fast Card", "versions": {"jax": "0.12.0", "flax": "0.12.12"}}
        record.add(0, [Event("run_start", payload=start)])
        record.add(0, [Event("base_loss", t, None, {"loss": BASE[t]}) for t in tasks])
        queue = [(task, i) for task in tasks for i in range(trials)]
        _play(record, queue, trials, slots, random)
        if live_at is None:
            for task in tasks:
                record.add(
                    record.tick, [Event("best", task, name(0, trials), {"loss": 1.0, "step": 1, "base": BASE[task]})]
                )
            record.add(record.tick, [Event("finish")])
    return run_dir


def name(i: int, trials: int) -> str:
    return f"trial-{i:0{len(str(trials - 1))}d}"


def facts(task: str, i: int, trials: int) -> dict:
    rank, rate = [8, 16, 64][i % 3], [1e-5, 1e-4, 3e-4, 5e-3][i % 4]
    return {
        "task": task,
        "trial": name(i, trials),
        "total_steps": 200,
        "total_samples": 1600,
        "schedule": {"total_steps": 200, "twice": 0.1, "warmup": 0.03},
        "config": {
            "lora_rank": rank,
            "lora_alpha": 2.0 * rank,
            "use_rslora": False,
            "lora_dropout": 0.0,
            "target_modules": "all-linear" if i % 2 else ["q_proj", "v_proj"],
            "learning_rate": rate,
            "lr_scheduler_type": "cosine",
            "warmup_ratio": 0.03,
            "weight_decay": 0.01,
            "batch_size": [2, 4, 8][i % 3],
            "gradient_accumulation_steps": 1,
            "seed": i,
        },
    }


class _Recorder:
    def __init__(self, journal: Journal, live_at: int | None):
        self.journal, self.live_at, self.tick = journal, live_at, 0

    def add(self, tick: int, events=(), points=()) -> None:
        self.tick = tick
        if self.live_at is None or tick <= self.live_at:
            self.journal.append(tick, events, points)


def _play(record: _Recorder, queue: list, trials: int, slots: int, random: np.random.Generator) -> None:
    free, running, parked, tick = list(range(slots)), {}, {}, 0
    while queue or running or parked:
        while free and queue:
            key = queue.pop(0)
            slot, step = free.pop(0), parked.pop(key, 0)
            running[key] = [slot, step]
            kind = "resume" if step else "start"
            record.add(tick, [_event(kind, key, trials, slot, step)])
        if not running:
            queue = sorted(parked)
            continue
        tick += 10
        for key, (slot, step) in list(running.items()):
            step += 10
            running[key][1] = step
            events, leaves = [], False
            ended = _fate(key[1], step)
            if ended is not None:
                events.append(_event("end", key, trials, slot, step, **ended))
                leaves = True
            elif step == 30 and key[1] % 2:
                events.append(_event("park", key, trials, slot, step))
                parked[key] = step
                leaves = True
            record.add(tick, events, _points(key, trials, step, tick, random))
            if leaves:
                del running[key]
                free.append(slot)
        free.sort()


def _event(kind: str, key: tuple, trials: int, slot: int, step: int, **more) -> Event:
    return Event(kind, key[0], name(key[1], trials), {"slot": slot, "step": step, "samples": 8 * step, **more})


def _fate(i: int, step: int) -> dict | None:
    ends = {
        1: (60, "underperforming", "best validation loss 2.31 ranked 6 of 8; 2 went on, the best at 1.84"),
        3: (80, "diverging", "slope of train and validation loss 0.03 and 0.05 over 2 evaluations"),
        4: (60, "underperforming", "best validation loss 2.11 ranked 5 of 8; 2 went on, the best at 1.84"),
        5: (130, "overfitting", "validation loss 0.31 above train loss for 2 evaluations"),
        7: (50, "not finite", "3 updates in a row were not finite"),
    }
    at, reason, detail = ends.get(i % 8, (200, "schedule done", ""))
    if step < at:
        return None
    return {"status": "completed" if at == 200 else "stopped", "reason": reason, "detail": detail, "slot_s": step * 0.4}


def _points(key: tuple, trials: int, step: int, tick: int, random: np.random.Generator) -> list[Point]:
    task, i = key
    reach = 0.3 if i % 8 in (1, 4) else 0.5 + 0.08 * (i % 5)  # these fall behind their peers
    loss = BASE[task] * (1 - reach * (1 - math.exp(-step / (40 + 12 * (i % 4))))) + 0.02 * random.normal()
    if i % 8 == 3:
        loss += 0.0004 * max(step - 30, 0) ** 2
    if i % 8 == 5:
        loss += 0.004 * max(step - 70, 0)
    if i % 8 == 7 and step >= 50:
        loss = math.nan
    at = (task, name(i, trials), step, 8 * step, 900 * step)
    return [Point(*at, "train", loss * 0.96, 1e-4, tick * 1.5), Point(*at, "validation", loss, None, tick * 1.5)]


def write_finished_run(folder: Path, tasks=("first", "second")) -> Path:
    """A run over configs/tiny with random weights: config, journal, adapters of two trials a task and the best."""
    rows = folder / "rows.jsonl"
    lines = [{"prompt": f"{a} plus {b} is", "completion": str(a + b)} for a in range(4) for b in range(4)]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = {"train": str(rows), "validation": str(rows), "validation_samples": 8, "max_length": 96}
    config = TuneConfig.model_validate(
        {
            "output_dir": str(folder / "run"),
            "model": {"model_name_or_path": str(TINY), "random_init": True},
            "tasks": [{"name": task, "data": data} for task in tasks],
        }
    )
    model = read_model_config(TINY, weights=False)
    with Journal.open(folder / "run", config_text=dump_config(config), identity="d") as journal:
        journal.set("trials", [facts(task, i, 2) for task in tasks for i in range(2)])
    for number, task in enumerate(tasks):
        for trial, seed in (("trial-0", 2 * number), ("trial-1", 2 * number + 1), ("best", 2 * number)):
            spec, adapter = random_adapter(model, seed=seed, alpha=100.0)
            export_adapter(folder / "run" / task / trial, spec, adapter, model, load_tokenizer(TINY), {})
    return folder / "run"

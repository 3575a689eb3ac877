"""ALTO's headline: time to the best adapter of a grid on one GPU, against tuning one at a time.

    python scripts/reproduce/reproduce_alto.py configs/reproduce-alto.yaml [key=value ...] [--data FOLDER]
        [--tasks gsm8k ...] [--parts base full early eager paper halving topk solo peft crowd test regret]
        [--train-samples 2048] [--minutes 9]

Everything lands in the config's output_dir, a part and a data set at a time: what is there is not done again, and a run
resumes from its last checkpoint, so the same command may be given as often as it takes. `--minutes` stops it by itself,
as Ctrl-C does. The tables are printed at the end of every call, and written to page.md with pictures beside it.

- base: the base as a plain Hugging Face folder in bfloat16 (float32 on a CPU), which all arms read
- full, early, eager, paper, halving, topk: one run of all configurations each, with no early exit or with that preset
- solo: one configuration a batch size, one at a time, by the same program with one slot
- peft: the same configurations, rows, order and steps by scripts/reproduce/tune_with_peft.py, with --peft-python
- crowd: the same by 1, 2, 4, 8 and 16 processes at once (--processes), by scripts/reproduce/crowd_with_peft.py
- test: loss and exact match, on the test rows, of the base and of the adapters found
- regret: rules replayed on the full grid's curves, and on random sub-grids of 16; writes curves.csv.gz

Arms that are compared must each have a GPU of the same kind to themselves. --tiny puts a random model of two layers in
the base's place, to try everything on a CPU.
"""

from jaxrun.process.script import run_script

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time

STARTED = time.perf_counter()

from collections.abc import Sequence  # noqa: E402
from importlib.util import find_spec  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import grid_numbers  # noqa: E402
import grid_page  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import transformers  # noqa: E402
from gpu_share import BusyShare  # noqa: E402
from rich.console import Console  # noqa: E402

from altojax.cli import main as altojax_main  # noqa: E402
from altojax.config.tune_config import TuneConfig  # noqa: E402
from altojax.report.curve_files import read_curves  # noqa: E402
from altojax.report.run_record import RunRecord, read_record  # noqa: E402
from altojax.run.prepare import prepare  # noqa: E402
from altojax.run.trial import Trial  # noqa: E402
from altojax.run.tuner import Tuner  # noqa: E402
from jaxlm.files.hf import save_model  # noqa: E402
from jaxlm.files.tokenizer import load_tokenizer  # noqa: E402
from jaxlm.files.weights import load_model  # noqa: E402
from jaxrun.config.config import load_config  # noqa: E402
from jaxrun.config.script_options import ScriptOptions  # noqa: E402
from jaxrun.files.atomic import write_atomic  # noqa: E402
from jaxrun.process.errors import UserError, nearest  # noqa: E402
from jaxrun.store.journal import Journal  # noqa: E402
from jaxrun.store.run_folder import JOURNAL_NAME  # noqa: E402

IMPORTS_S = time.perf_counter() - STARTED
ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / ".venv-reference" / "bin" / "python"
ARMS = {"full": "none", "early": "default", "eager": "eager", "paper": "paper", "halving": "halving", "topk": "topk"}
"""Runs of the whole grid -> preset of early exit."""
PARTS = ("base", *ARMS, "solo", "peft", "crowd", "test", "regret")
OVER_ALL = ("base", "crowd", "regret")
"""Parts that are done once for all data sets."""
ANSWERS = {"gsm8k": (r"#### (.*)", 256), "banking77": (None, 16)}
"""Data sets whose answers are compared -> what of an answer, and its most tokens."""


class Reproduction:
    """All parts over the tasks of one config."""

    def __init__(self, options: argparse.Namespace):
        """Reads the config and what is known already."""
        self.options, self.console = options, Console(width=110)
        overrides = list(options.overrides)
        if options.train_samples:
            overrides.append(f"search.train_samples={options.train_samples}")
        if options.tiny:
            overrides += ["model={model_name_or_path: configs/tiny, random_init: true}"]
        config = load_config(TuneConfig, options.config, overrides)
        if options.data is not None:
            moved = [[f"{options.data}/{Path(path).name}" for path in _listed(one.data.train)] for one in config.tasks]
            overrides += [f"tasks.{i}.data.train={json.dumps(paths)}" for i, paths in enumerate(moved) if paths[1:]]
            overrides += [f"tasks.{i}.data.train={path}" for i, (path, *more) in enumerate(moved) if not more]
            config = load_config(TuneConfig, options.config, overrides)
        self.config = config
        self.out = Path(config.output_dir)
        self.out.mkdir(parents=True, exist_ok=True)
        if not jax.config.jax_compilation_cache_dir:
            jax.config.update("jax_compilation_cache_dir", str((self.out / "xla").absolute()))
        names = [task.name for task in config.tasks]
        for name in options.tasks or ():
            if name not in names:
                raise UserError(f"--tasks: given '{name}', expected some of {', '.join(names)}{nearest(name, names)}")
        self.tasks = options.tasks or names
        self.imports_s = IMPORTS_S

    def run_config(self, arm: str, task: str, overrides: Sequence[str] = ()) -> TuneConfig:
        """Returns the config of one arm's run on one task, on the base that all arms share."""
        tree = self.config.model_dump(mode="json", exclude_unset=True)
        tree["tasks"] = [one for one in tree["tasks"] if one["name"] == task]
        tree["model"] |= {"model_name_or_path": str(self.out / "base"), "random_init": False}
        overrides = (*overrides, f"output_dir={self.out}/{arm}-{task}")
        return load_config(TuneConfig, tree, overrides, source=str(self.options.config))

    def base(self) -> None:
        """Writes the base where every arm reads it."""
        if (self.out / "base").is_dir():
            return
        spec = self.config.model
        if spec is None:
            raise UserError(f"{self.options.config}: model: missing, expected the base of all tasks")
        dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
        tokenizer = load_tokenizer(spec.model_name_or_path)
        config, model = load_model(spec.model_name_or_path, dtype=dtype, random_init=spec.random_init)
        save_model(self.out / "base", config, model, dtype=dtype, tokenizer=tokenizer)

    def grid(self, arm: str, task: str) -> None:
        """Trains the whole grid, with the arm's rules."""
        self._tune(arm, task, self.run_config(arm, task, [f"early_exit.preset={ARMS[arm]}"]))

    def solo(self, task: str) -> None:
        """Trains one configuration a batch size, one after the other."""
        self._tune("solo", task, self._sample(task))

    def peft(self, task: str) -> None:
        """Has the same configurations trained by PEFT and the Trainer, in an interpreter of their own."""
        out = self.out / f"peft-{task}.json"
        if out.is_file():
            return
        job = {"model": str(self.out / "base"), **self._peft_sample(task)}
        told, busy = self._by_peft("tune_with_peft.py", job, out)
        write_atomic(out, json.dumps(told | {"busy": busy}, indent=2) + "\n")

    def crowd(self) -> None:
        """Has the same configurations trained by several processes at once that share the GPU."""
        out = self.out / "crowd.json"
        stages = json.loads(out.read_text())["stages"] if out.is_file() else []
        known = {(one["processes"], one["data"]) for one in stages}
        if known.issuperset(itertools.product(self.options.processes, self.tasks)):
            return
        samples = {task: self._peft_sample(task) for task in self.tasks}
        job = {
            "model": str(self.out / "base"),
            "rows": {task: sample["rows"] for task, sample in samples.items()},
            "configurations": samples[self.tasks[0]]["configurations"],
            "processes": self.options.processes,
            "seconds": self.options.window_s,
        }
        self._by_peft("crowd_with_peft.py", job, out)

    def test(self, task: str) -> None:
        """Measures the base and every adapter that an arm found, on rows that no arm saw."""
        found: dict[str, Path] = {}
        for arm in ARMS:
            record = self.record(arm, task)
            if record is not None and record.finished and (best := record.best_of(task)) is not None:
                found.setdefault(best.trial, self.out / f"{arm}-{task}" / task / "best")
        path = self.out / f"test-{task}.json"
        known = json.loads(path.read_text()) if path.is_file() else {}
        missing = {trial: folder for trial, folder in found.items() if trial not in known}
        if not missing:
            return
        (data,) = [one.data for one in self.config.tasks if one.name == task]
        settings = [f"data={data.train.replace('.train.', '.test.')}", f"max_length={data.max_length}"]
        settings += [f"chat_template={json.dumps(data.chat_template)}", f"batch_size={self.options.test_rows}"]
        settings += [f"adapter={','.join(map(str, missing.values()))}", f"out={self.out}/test.part"]
        if self.options.test_samples:
            settings.append(f"max_samples={self.options.test_samples}")
        if task in ANSWERS:
            pattern, most = ANSWERS[task]
            settings += ["exact_match=true", f"max_new_tokens={most}"]
            settings += [] if pattern is None else [f"answer_pattern={pattern}"]
        if altojax_main(["evaluate", str(self.out / "base"), *settings]):
            raise UserError(f"evaluate: could not measure {task}, see above")
        told = json.loads((self.out / "test.part").read_text())
        names = ["base", *missing]
        known |= dict(zip(names, told["results"], strict=True)) | {"rows": told["rows"]}
        write_atomic(path, json.dumps(known, indent=2) + "\n")

    def regret(self) -> None:
        """Replays rules on the curves of the full grids."""
        records = {task: record for task in self.tasks if (record := self.record("full", task)) is not None}
        rows = [
            row for task, record in records.items() if record.finished for row in grid_numbers.curve_rows(task, record)
        ]
        if not rows:
            return
        write_atomic(self.out / "curves.csv.gz", grid_numbers.curves_csv_gz(rows))
        groups = read_curves(self.out / "curves.csv.gz")
        told = grid_numbers.regrets(groups, size=self.options.sub_grid, draws=self.options.draws, seed=self.config.seed)
        write_atomic(self.out / "regret.json", json.dumps(told, indent=2) + "\n")

    def do(self, part: str) -> None:
        """Does one part."""
        if part in OVER_ALL:
            getattr(self, part)()
            return
        for task in self.tasks:
            self.grid(part, task) if part in ARMS else getattr(self, part)(task)

    def page(self) -> str:
        """Writes the page of what is there, and returns its tables."""
        return grid_page.write_page(self.out, [task.name for task in self.config.tasks])

    def record(self, arm: str, task: str) -> RunRecord | None:
        """Returns what is known of a run, or None where it has not begun."""
        folder = self.out / f"{arm}-{task}"
        if not (folder / JOURNAL_NAME).is_file():
            return None
        with Journal.read(folder) as journal:
            return read_record(journal)

    def _sample(self, task: str) -> TuneConfig:
        """Returns the run of one configuration a batch size: the middle of the grid's learning rates and ranks."""
        search = self.config.search
        batches = sorted(_listed(search.batch_size))
        middle = {"lora_rank": _middle(search.lora_rank), "learning_rate": _middle(search.learning_rate)}
        fixed = search.model_dump(mode="json", exclude_unset=True, exclude={*middle, "batch_size", "method", "trials"})
        fixed |= {
            "train_samples": self.options.sample,
            "configurations": [{**middle, "batch_size": b} for b in batches],
        }
        overrides = [f"search={json.dumps(fixed)}", "slots=1", "early_exit.preset=none"]
        return self.run_config("solo", task, [*overrides, f"eval_samples={self.options.sample}"])

    def _peft_sample(self, task: str) -> dict[str, Any]:
        """Writes the rows of one task's sample as PEFT reads them; returns where, and the configurations."""
        prepared = prepare(self._sample(task))
        (base,), data = prepared.bases, prepared.data[task]
        first = base.trials[0].stream
        met = [row for step in range(first.total_steps) for row in first.effective_batch(step)]
        rows = {name: self.plain(part) for name, part in (("train", met), ("validation", data.validation))}
        write_atomic(self.out / f"peft-{task}.rows.json", json.dumps(rows))
        return {
            "rows": str(self.out / f"peft-{task}.rows.json"),
            "configurations": self.configurations(base.trials),
        }

    @staticmethod
    def plain(rows: Sequence[Any]) -> list[dict[str, list[int]]]:
        """Returns rows as PEFT reads them."""
        return [_row(row) for row in rows]

    def configurations(self, trials: Sequence[Trial]) -> list[dict[str, Any]]:
        """Returns trials as the scripts of PEFT read them."""
        return [
            {
                "name": trial.name,
                "rank": trial.config.lora_rank,
                "learning_rate": trial.config.learning_rate,
                "batch_size": trial.config.batch_size,
                "steps": trial.stream.total_steps,
                "warmup_steps": int(trial.hyper()["warmup_steps"]),
                "weight_decay": trial.config.weight_decay,
                "lr_scheduler_type": trial.config.lr_scheduler_type,
                "max_grad_norm": trial.config.max_grad_norm,
                "seed": trial.seed,
            }
            for trial in trials
        ]

    def _by_peft(self, script: str, job: dict[str, Any], out: Path) -> tuple[dict[str, Any], float | None]:
        """Runs a script in an interpreter that has peft; returns what it wrote, and how busy the GPU was."""
        path = out.with_suffix(".job.json")
        write_atomic(path, json.dumps(job, indent=2) + "\n")
        command = [self._peft_python(), str(Path(__file__).with_name(script)), str(path), str(out)]
        with BusyShare() as busy:
            code = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False).returncode
        if code:
            raise UserError(
                f"{command[1]}: ended with {code} under {command[0]}, expected torch, transformers and peft"
            )
        return json.loads(out.read_text()), busy.share

    def _tune(self, arm: str, name: str, config: TuneConfig) -> None:
        """Runs to the end, and adds up the seconds of every call that took part."""
        record = self.record(arm, name)
        if record is not None and record.finished:
            return
        path = self.out / f"{arm}-{name}.json"
        told = json.loads(path.read_text()) if path.is_file() else {"seconds": [], "busy": []}
        begun = time.perf_counter() - self.imports_s
        try:
            with BusyShare() as busy:
                code = Tuner(config, console=self.console).run()
        finally:
            told["seconds"].append(time.perf_counter() - begun)
            told["busy"].append(busy.share)
            write_atomic(path, json.dumps(told | {"device": jax.devices()[0].device_kind}, indent=2) + "\n")
        if code:
            raise KeyboardInterrupt

    def _peft_python(self) -> str:
        if self.options.peft_python:
            return str(self.options.peft_python)
        if not REFERENCE.exists() and all(find_spec(name) for name in ("torch", "peft")):
            return sys.executable
        return str(REFERENCE)


def _row(row: Any) -> dict[str, list[int]]:
    return {"ids": row.tokens.tolist(), "labels": np.where(row.targets, row.tokens, -100).tolist()}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _middle(value: Any) -> Any:
    values = sorted(_listed(value))
    return values[len(values) // 2]


def arguments(about: str | None, parts: Sequence[str], processes: Sequence[int]) -> argparse.Namespace:
    """Reads the command line of a study that says so much about itself, with so many processes of PEFT unless given."""
    parser = ScriptOptions(about, TuneConfig)
    parser.add_argument("config", type=Path)
    parser.add_argument("--data", type=Path, help="folder of NAME.train.jsonl and NAME.test.jsonl")
    parser.add_argument("--tasks", nargs="+", help="data sets to work on, all unless given")
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--train-samples", type=int, help="schedule of every configuration, in samples")
    parser.add_argument("--sample", type=int, default=256, help="samples of each configuration of solo and peft")
    parser.add_argument("--processes", type=int, nargs="+", default=[*processes], help="of PEFT at once, for crowd")
    parser.add_argument("--window-s", type=float, default=4.0, help="seconds in which crowd counts steps, each time")
    parser.add_argument("--peft-python", type=Path, help="interpreter that has PyTorch, transformers and peft")
    parser.add_argument("--test-samples", type=int, help="test rows, all unless given")
    parser.add_argument("--test-rows", type=int, default=128, help="test rows at once")
    parser.add_argument("--sub-grid", type=int, default=16, help="configurations of a sub-grid")
    parser.add_argument("--draws", type=int, default=500, help="sub-grids of each data set")
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--tiny", action="store_true", help="a random model of two layers as the base")
    return parser.read()


def run_parts(options: argparse.Namespace, study: type[Reproduction]) -> int:
    """Does the parts of a study in order and prints its page.

    Returns:
        Exit code 130 where time ran out before all were done.
    """
    transformers.logging.set_verbosity_error()
    code = 0
    if options.minutes is not None:
        timer = threading.Timer(options.minutes * 60, os.kill, (os.getpid(), signal.SIGINT))
        timer.daemon = True
        timer.start()
    all_parts = None
    try:
        all_parts = study(options)
        all_parts.base()
        for part in options.parts:
            all_parts.do(part)
    except KeyboardInterrupt:
        print("stopped; run the same command again to resume", file=sys.stderr)
        code = 130
    if all_parts is not None:
        print(all_parts.page())
    return code


def main() -> int:
    """Does the parts in order and prints the tables; exit code 130 where time ran out before all were done."""
    return run_parts(arguments(__doc__, PARTS, [1, 2, 4, 8, 16]), Reproduction)


if __name__ == "__main__":
    sys.exit(run_script(main))

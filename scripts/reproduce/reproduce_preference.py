"""Five preference tasks of 60 trials each in one run, after supervised fine-tuning, against tuning one at a time.

    python scripts/reproduce/reproduce_preference.py configs/reproduce-preference.yaml [key=value ...] [--data FOLDER]
        [--parts base full early eager solo peft crowd test regret] [--minutes 9]

Everything lands in the config's output_dir, a part at a time: what is there is not done again, and a run resumes from
its last checkpoint, so the same command may be given as often as it takes. Its page is printed at the end of a call.

- base: the base as a plain Hugging Face folder in bfloat16 (float32 on a CPU), which all arms read
- full, early, eager: one run of all tasks each, with no early exit or with that preset; DPO starts from the best of sft
- solo: one configuration a batch size, one at a time, by the same program with one slot
- peft: the same configurations, pairs, order and steps by scripts/reproduce/dpo_with_peft.py, with --peft-python
- crowd: the same by several processes at once (--processes), by scripts/reproduce/crowd_with_peft.py
- test: of the test pairs, how often base, sft's best and each arm's winner find the chosen answer the likelier one
- regret: what each early-exit rule saves and loses, replayed on the full grid's curves; writes curves.csv.gz

solo, peft and crowd start from the base, which takes as long. --tiny puts a random model of two layers in the base's
place, to try everything on a CPU.
"""

from jaxrun.process.script import run_script

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import grid_numbers
import grid_page
from reproduce_alto import Reproduction, arguments, run_parts

from altojax.cli import main as altojax_main
from altojax.config.tune_config import TuneConfig, objective_of
from altojax.report.curve_files import read_curves
from jaxrun.config.config import load_config
from jaxrun.files.atomic import write_atomic
from jaxrun.plots.markdown import table
from jaxrun.process.errors import UserError

ALL = "all"
"""What is in the place of a task's name where a run has all of them."""
RUNS = ("full", "early", "eager")
PARTS = ("base", *RUNS, "solo", "peft", "crowd", "test", "regret")


class PreferenceStudy(Reproduction):
    """All parts, over the tasks of one config in one run."""

    def __init__(self, options: argparse.Namespace):
        """Reads the config; all its tasks of pairs are worked on."""
        super().__init__(options)
        pairs = [task.name for task in self.config.tasks if objective_of(self.config, task) == "dpo"]
        self.tasks = options.tasks or pairs

    def run_config(self, arm: str, task: str, overrides: Any = ()) -> TuneConfig:
        """Returns the config of one arm's run, of one task or of all."""
        if task != ALL:
            return super().run_config(arm, task, overrides)
        tree = self.config.model_dump(mode="json", exclude_unset=True)
        tree["model"] |= {"model_name_or_path": str(self.out / "base"), "random_init": False}
        return load_config(TuneConfig, tree, (*overrides, f"output_dir={self.out}/{arm}-{ALL}"), source="the study")

    def do(self, part: str) -> None:
        """Does one part; a run has all tasks."""
        if part in RUNS:
            self.grid(part, ALL)
        else:
            super().do(part)

    def _sample(self, task: str) -> TuneConfig:
        """Returns the run of one configuration a batch size, in the middle of the grid, from the base."""
        search = self.config.search
        middle: dict[str, Any] = {"lora_rank": 16, "loss_type": "sigmoid"}
        middle |= {
            name: sorted(getattr(search, name))[len(getattr(search, name)) // 2] for name in ("learning_rate", "beta")
        }
        fixed = search.model_dump(mode="json", exclude_unset=True, exclude={*middle, "batch_size"})
        fixed |= {"train_samples": self.options.sample}
        fixed |= {"configurations": [{**middle, "batch_size": one} for one in sorted(search.batch_size)]}
        overrides = [f"search={json.dumps(fixed)}", "slots=1", "early_exit.preset=none", "tasks.0.init_adapter=null"]
        return self.run_config("solo", task, [*overrides, f"eval_samples={self.options.sample}"])

    @staticmethod
    def plain(rows: Any) -> list[dict[str, list[int]]]:
        """Returns pairs as PEFT reads them."""
        found = []
        for chosen, rejected in zip(rows[::2], rows[1::2], strict=True):
            ids = {"prompt_ids": chosen.tokens[: int(chosen.targets.argmax())].tolist()}
            for name, row in (("chosen_ids", chosen), ("rejected_ids", rejected)):
                ids[name] = row.tokens[row.targets].tolist()
            found.append(ids)
        return found

    def configurations(self, trials: Any) -> list[dict[str, Any]]:
        """Returns the configurations of trials, with their losses of pairs."""
        own = super().configurations(trials)
        for one, trial in zip(own, trials, strict=True):
            one |= {"beta": trial.config.beta, "loss_type": trial.config.loss_type, "tokenizer": str(self.out / "base")}
        return own

    def test(self, task: str) -> None:
        """Asks base, sft's best and every arm's winner which answer of each test pair they find the likelier one."""
        (data,) = [one.data for one in self.config.tasks if one.name == task]
        path = self.out / f"test-{task}.json"
        known = json.loads(path.read_text()) if path.is_file() else {}
        for arm in RUNS:
            record = self.record(arm, ALL)
            if arm in known or record is None or not record.finished:
                continue
            folder = self.out / f"{arm}-{ALL}"
            adapters = f"{folder}/sft/best,{folder}/{task}/best"
            settings = [
                f"data={data.train.replace('.train.', '.test.')}",
                f"max_length={data.max_length}",
                "batch_size=64",
            ]
            settings += ["chat_template=false", f"adapter={adapters}", f"out={self.out}/test.part"]
            if altojax_main(["evaluate", str(self.out / "base"), *settings]):
                raise UserError(f"evaluate: could not measure {task}, see above")
            told = json.loads((self.out / "test.part").read_text())
            known[arm] = dict(zip(("base", "sft", "winner"), told["results"], strict=True)) | {"pairs": told["rows"]}
            write_atomic(path, json.dumps(known, indent=2) + "\n")

    def regret(self) -> None:
        """Replays rules, which go by the accuracy on validation pairs, on the curves of the full grids."""
        record = self.record("full", ALL)
        if record is None or not record.finished:
            return
        rows = [row for task in self.tasks for row in grid_numbers.curve_rows(task, record)]
        write_atomic(self.out / "curves.csv.gz", grid_numbers.curves_csv_gz(rows))
        kinds: dict[str, Any] = {"size": self.options.sub_grid, "draws": self.options.draws, "seed": self.config.seed}
        told = grid_numbers.regrets(read_curves(self.out / "curves.csv.gz"), **kinds, select_by="preference")
        write_atomic(self.out / "regret.json", json.dumps(told, indent=2) + "\n")

    def page(self) -> str:
        """Returns the tables of what is there."""
        found = [self._times(), self._accuracies(), *grid_page.regret_tables(_read(self.out / "regret.json", []))]
        text = "\n\n".join(part for part in found if part)
        write_atomic(self.out / "page.md", text + "\n")
        return text

    def _times(self) -> str:
        rows = []
        for arm in RUNS:
            told, record = _read(self.out / f"{arm}-{ALL}.json", None), self.record(arm, ALL)
            if told is not None and record is not None and record.finished:
                samples = sum(trial.samples for trial in record.trials)
                rows.append([f"all tasks, {arm}", len(record.trials), f"{sum(told['seconds']):,.0f}", f"{samples:,}"])
        for task in self.tasks:
            peft, solo = _read(self.out / f"peft-{task}.json", None), self.record("solo", task)
            record = self.record("full", ALL) or self.record("early", ALL)
            if record is None:
                continue
            trials = record.of_task(task)
            steps = [(one.config["batch_size"], one.total_steps) for one in trials]
            scheduled = f"{sum(one.total_samples for one in trials):,}"
            if peft is not None:
                seconds = grid_page.alone_by_peft(peft).total_s(steps)
                rows.append([f"{task}, PEFT one at a time", len(trials), f"{seconds:,.0f}", scheduled])
            for stage in grid_page.stages_of(self.out, task):
                seconds = grid_page.crowd_s(self.out, stage, steps)
                rows.append([f"{task}, {stage['processes']} processes", len(trials), f"{seconds:,.0f}", scheduled])
            if solo is not None and solo.finished:
                told = _read(self.out / f"solo-{task}.json", None)
                alone = grid_page.alone_by_us(grid_page.Arm(sum(told["seconds"]), 0, None, None, solo))
                seconds = alone.total_s(steps)
                rows.append([f"{task}, altojax one at a time", len(trials), f"{seconds:,.0f}", scheduled])
        return table(["what", "trials", "seconds", "pairs or rows"], rows) if rows else ""

    def _accuracies(self) -> str:
        rows = []
        for task in self.tasks:
            for arm, told in _read(self.out / f"test-{task}.json", {}).items():
                shares = [f"{told[who]['accuracy']:.1%}" for who in ("base", "sft", "winner")]
                record = self.record(arm, ALL)
                best = None if record is None else record.best_of(task)
                tuned = "" if best is None else ", ".join(f"{best.config[name]}" for name in _SHOWN)
                rows.append([task, arm, told["pairs"], *shares, tuned])
        columns = ["task", "arm", "test pairs", "base", "sft", "winner", " · ".join(_SHOWN)]
        return table(columns, rows) if rows else ""


_SHOWN = ("loss_type", "beta", "learning_rate", "lora_rank", "batch_size")


def _read(path: Path, otherwise: Any) -> Any:
    return json.loads(path.read_text()) if path.is_file() else otherwise


def main() -> int:
    """Does the parts in order and prints the page; exit code 130 where time ran out before all were done."""
    options = arguments(__doc__, PARTS, processes=[1, 4, 8, 16])
    return run_parts(options, PreferenceStudy)


if __name__ == "__main__":
    sys.exit(run_script(main))

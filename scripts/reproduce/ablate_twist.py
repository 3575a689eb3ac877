"""What goes beyond TwIST, one arm at a time and together, beside baselines with the same teacher and the same tokens.

    python scripts/reproduce/ablate_twist.py configs/twistjax/reproduce.yaml [key=value ...] [--parts twist core ...]
        [--kappa 0.5] [--times 1 2] [--minutes 9] [--plan] [--tiny] [--from-scratch gpt2|tiny]

Everything lands in the config's output_dir, part by part: what is there is not done again, and a training resumes from
its last checkpoint, so the same command may be given as often as it takes. `--minutes` stops it by itself, as Ctrl-C
does. Of a finished arm only arms/NAME.json stays, as its run takes some GB. Where arms/, speed-*.json and the
baselines.json of baselines-x1, drawn-x1 and so on are brought to the output_dir of another machine, it goes on there.
The table is printed at the end of every call, and written to tables.md beside plots/. `--plan` trains nothing and says
how long each part is going to take, at `--pace` tokens a second; `--tiny` is a model of two layers, whose numbers mean
nothing.

Every arm trains at --kappa on the tokens of the config, and with --times 1 2 also on twice as many; --draws random
tickets of it are scored, or the only one. Parts:

- pretrain: with --from-scratch, a dense model of that shape
- teacher: the dense model, tuned on the text; all arms with a teacher learn from this one
- twist: TwIST as published; importance, gradients, core, taught, outer, outer-short: one thing changed
- importance-taught, core-taught, all, core-all: several
- ladder, ladder-self: one training for all kappas of the config and 1, with the teacher and with in-place distillation
- own: a training like importance-taught at every other kappa of the config, for the ladder to be compared with
- baselines: dense and small dense of each kappa, plain and distilled, pruning; with the units of importance
- drawn: a small dense model that begins with a random ticket
- speed: size, and tokens a second of reading and writing on this machine
"""

from jaxrun.process.script import run_script

import argparse
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from twist_experiment import ROOT, TwistExperiment, options_of, read_kept, run_for
from twist_pictures import pictures_of
from twist_table import ARMS_FOLDER, table_of

from jaxlm.models.functional import Functional
from jaxlm.models.perplexity import perplexity
from jaxrun.plots.markdown import table
from jaxrun.plots.pictures import save_pictures
from jaxrun.store.journal import Journal
from twistjax.comparison.baselines import FOLDER as BENCH_RUNS
from twistjax.comparison.baselines import Bench
from twistjax.config import TwistConfig
from twistjax.report.results import FILE_NAME as BASELINES
from twistjax.tickets.export import export
from twistjax.tickets.repair import repaired
from twistjax.tickets.sampling import draw_tickets
from twistjax.tickets.settings import REPAIR_ROWS
from twistjax.training.central_model import TrainedRun, open_trained
from twistjax.training.prepare import PreparedTraining, prepare, scorer_of
from twistjax.training.rounds_plan import ticket_key
from twistjax.training.teacher import FOLDER as LABELS
from twistjax.training.teacher import has_labels

RANKED, CORE = "subnetworks.order=importance", "subnetworks.core=0.5"
OUTER, TAUGHT = "training.outer=nesterov", "training.teacher={teacher}"


class Arm(NamedTuple):
    """A training.

    Attributes:
        overrides: What of the config is changed.
        ladder: Whether it is for all kappas.
        repaired: Whether its tickets are also scored after a repair.
    """

    overrides: tuple[str, ...] = ()
    ladder: bool = False
    repaired: bool = False


ARMS = {
    "twist": Arm(repaired=True),
    "importance": Arm((RANKED,), repaired=True),
    "gradients": Arm((RANKED, "subnetworks.importance=gradients")),
    "core": Arm((CORE,), repaired=True),
    "taught": Arm((TAUGHT,)),
    "outer": Arm((OUTER,)),
    "outer-short": Arm((OUTER, "training.local_steps=5")),
    "importance-taught": Arm((RANKED, TAUGHT)),
    "core-taught": Arm((CORE, TAUGHT)),
    "all": Arm((RANKED, TAUGHT, OUTER), repaired=True),
    "core-all": Arm((CORE, TAUGHT, OUTER), repaired=True),
    "ladder": Arm((RANKED, TAUGHT), ladder=True),
    "ladder-self": Arm((RANKED, "training.teacher=self"), ladder=True),
}
PARTS = ("pretrain", "teacher", *ARMS, "own", "baselines", "drawn", "speed")
DRAWN = {"small dense, fine-tuned"}
TRAINED = {"dense, fine-tuned", "dense, distilled", "small dense, distilled"} | DRAWN
TINY = (
    "model.model_name_or_path=configs/tiny",
    "model.random_init=true",
    "data.max_length=32",
    "data.validation_samples=4",
    "subnetworks={workers: 4, kappa: [0.5, 0.75], block: 16}",
    "training={local_steps: 2, batch_size: 2, train_samples: 32, learning_rate: 1.0e-3}",
    "evaluation={every: 1, tickets: 1}",
    "baselines={draws: 2, calibration_rows: 4}",
)
OVERHEAD_S, LABELS_AS_FAST = 40, 3
"""Of a run, for loading, compiling, evaluations and checkpoints; and how much faster a teacher reads than it learns."""


class Ablation(TwistExperiment):
    """All parts over one model and one text."""

    @property
    def teacher(self) -> Path:
        """Folder of the dense model, tuned on the text."""
        return self.out / "teacher"

    def ladder(self) -> list[float]:
        """Returns the kappas of the config and 1, ascending."""
        return sorted({*self.config.subnetworks.ladder, 1.0})

    def arms(self, part: str) -> Iterator[tuple[str, list[str], bool]]:
        """Gives the trainings of a part: name, what of the config is changed, and whether tickets are repaired."""
        kappa = self.options.kappa
        if part == "own":
            for own in self.ladder():
                if own not in (kappa, 1.0):
                    yield f"own-{own:g}", self._filled(ARMS["importance-taught"].overrides, own), False
        elif part in ARMS:
            arm = ARMS[part]
            yield part, self._filled(arm.overrides, self.ladder() if arm.ladder else kappa), arm.repaired

    def do(self, part: str, times: int) -> None:
        """Does what of a part is not done, at so many times the tokens of the config."""
        if part == "pretrain" or (part == "speed" and not (self.out / f"speed-{jax.default_backend()}.json").is_file()):
            getattr(self, part)()
        if part == "teacher" or any("distilled" in arm for arm in self._unmeasured(part, times)):
            self._write_teacher()
        if part == "baselines":
            self._bench("baselines", times).run()
        elif part == "drawn":
            self._bench("drawn", times).run(DRAWN)
        for name, overrides, repair in self.arms(part):
            if not self._kept(name, times).is_file():
                if any(self.teacher.name in one for one in overrides if one.startswith("training.teacher")):
                    self._write_teacher()
                self._arm(name, times, overrides, repair=repair)

    def plan(self) -> str:
        """Returns a table of what is not done, and how long it will take."""
        rows, total, pace = [], 0.0, self.options.pace
        one = prepare(self._timed("plan", 1, [f"subnetworks.kappa={self.options.kappa}"]), self.text).plan
        tokens = one.rounds * one.samples_per_round * self.config.data.max_length
        labels = len(self.text[0].tokens) * self.config.data.max_length / (LABELS_AS_FAST * pace)
        for times in self.options.times:
            for part in (part for part in PARTS if part in self.options.parts):
                runs = len([name for name, *_ in self.arms(part) if not self._kept(name, times).is_file()])
                if part == "teacher" and times == 1 and not self.teacher.is_dir():
                    runs = 1
                runs += len([arm for arm in self._unmeasured(part, times) if arm in TRAINED])
                seconds = runs * (OVERHEAD_S + times * tokens / pace)
                seconds += labels if part == "taught" and runs and times == 1 else 0
                if runs:
                    rows.append([part, str(times), str(runs), f"{times * runs * tokens / 1e6:,.1f}", f"{seconds:,.0f}"])
                    total += seconds
        rows.append(["all", "", "", "", f"{total:,.0f}"])
        return table(["part", "times", "trainings", "M tokens", f"seconds at {pace:,} tokens/s"], rows)

    def _filled(self, overrides: tuple[str, ...], kappa: float | list[float]) -> list[str]:
        return [f"subnetworks.kappa={kappa}", *(one.format(teacher=self.teacher) for one in overrides)]

    def _timed(self, name: str, times: int, overrides: list[str]) -> TwistConfig:
        rows = self.base.training.train_samples or round(self.base.training.num_train_epochs * len(self.text[0].tokens))
        return self.changed(f"{name}-x{times}", [*overrides, f"training.train_samples={times * rows}"])

    def _kept(self, name: str, times: int) -> Path:
        return self.out / ARMS_FOLDER / f"{name}-x{times}.json"

    def _unmeasured(self, part: str, times: int) -> list[str]:
        """Returns the arms of other methods that a part has no result of, one for each kappa."""
        if part not in ("baselines", "drawn"):
            return []
        results = read_kept(self.out / f"{part}-x{times}" / BASELINES).get("results", [])
        known = {(one["arm"], one["kappa"]) for one in results}
        arms = [(arm, kappa) for arm, kappa, _ in self._bench(part, times).arms() if part != "drawn" or arm in DRAWN]
        return [arm for arm, kappa in arms if (arm, kappa) not in known]

    def _bench(self, part: str, times: int) -> Bench:
        """Returns the arms of other methods, whose small models begin with a ticket by importance, or with ticket 0."""
        kappas = [kappa for kappa in self.ladder() if kappa < 1]
        overrides = (
            self._filled((RANKED, TAUGHT), kappas) if part == "baselines" else self._filled((), self.options.kappa)
        )
        config = self._timed(part, times, overrides)
        return Bench(config, self.console, prepare(config, self.text))

    def _write_teacher(self) -> None:
        """Tunes the dense model, unless it has been, and writes it as a folder."""
        if self.teacher.is_dir():
            return
        bench = self._bench("baselines", 1)
        bench.tuned  # noqa: B018  # trains it
        dense = Path(bench.config.output_dir) / BENCH_RUNS / "dense"
        run = open_trained(dense, bench.prepared)
        export(run, self.teacher, 1.0, "best", dtype=np.dtype(np.float32))

    def _arm(self, name: str, times: int, overrides: list[str], *, repair: bool) -> None:
        """Trains, scores tickets of every kappa, keeps what was found, and removes the run."""
        config, labels = self._timed(name, times, overrides), self.out / f"labels-x{times}"
        others = [labels, *self.out.glob("*-x*"), *self.out.glob(f"*-x*/{BENCH_RUNS}/*")]
        begun = time.perf_counter()
        self.train(config, [other for other in others if has_labels(other)])
        prepared = prepare(config, self.text)
        run = open_trained(config.output_dir, prepared)
        kappas = {}
        scorer = scorer_of(config, prepared)
        for kappa in config.subnetworks.ladder:
            drawn = draw_tickets(run.weights, run.assignment, scorer, kappa, seed=config.seed, draws=self.options.draws)
            kappas[f"{kappa:g}"] = {"losses": drawn.losses, "parameters": _parameters(prepared, kappa)}
            if repair:
                kappas[f"{kappa:g}"]["repaired"] = self._repaired(run, kappa, len(drawn.losses))
        with Journal.read(run.run_dir) as journal:
            clock, points = journal.get("clock", {}), journal.points()
        found = {
            "arm": name,
            "times": times,
            "tokens": clock["tokens"],
            "seconds": time.perf_counter() - begun,
            "training tokens/s": clock["tokens"] / clock["training_s"],
            "full model": perplexity(scorer.full(run.weights, config.subnetworks.ladder[0])),
            "kappas": kappas,
            "curve": [[one.trial, one.tokens, one.loss] for one in points if one.split == "validation"],
        }
        self.keep(str(self._kept(name, times).relative_to(self.out)), found)
        if has_labels(run.run_dir) and not has_labels(labels):
            labels.mkdir(exist_ok=True)
            (run.run_dir / LABELS).rename(labels / LABELS)
        shutil.rmtree(run.run_dir)

    def _repaired(self, run: TrainedRun, kappa: float, count: int) -> list[float]:
        """Returns the losses of tickets after their repair."""
        scorer, small, losses = scorer_of(run.config, run.prepared), run.prepared.units.subnetwork(kappa), []
        for number in range(count):
            cut = scorer.cut(run.weights, run.assignment.draw(ticket_key(run.config.seed, number), kappa), kappa)
            losses.append(scorer.model(small, repaired(run, small, cut, REPAIR_ROWS)))
        return losses


def _parameters(prepared: PreparedTraining, kappa: float) -> int:
    shapes = Functional(prepared.units.subnetwork(kappa)).shapes
    return sum(int(np.prod(shape)) for shape in shapes.values())


def arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = options_of(__doc__, PARTS)
    parser.add_argument("--kappa", type=float, default=0.5)
    parser.add_argument("--times", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--plan", action="store_true")
    parser.add_argument("--pace", type=float, default=329_000.0)
    parser.add_argument("--tiny", action="store_true")
    options = parser.read()
    if options.tiny:
        options.overrides = [*TINY, *_tiny_text(), *options.overrides]
    return options


def _tiny_text() -> list[str]:
    """Returns the text of --tiny, what this repository's pages say, and a folder for its run."""
    folder = Path(tempfile.gettempdir()) / "ablate-twist-tiny"
    folder.mkdir(exist_ok=True)
    pages = sorted((ROOT / "docs").glob("*.md"))
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    (folder / "text.txt").write_text(text[:30_000], encoding="utf-8")
    return [f"data.train={folder}/text.txt", f"output_dir={folder}/run"]


def main() -> int:
    """Does the parts in order and prints the table; exit code 130 where time ran out before all were done."""
    options = arguments()
    if options.plan:
        print(Ablation(options).plan())
        return 0

    def work() -> None:
        ablation = Ablation(options)
        for times in options.times:
            for part in PARTS:
                if part in options.parts:
                    ablation.do(part, times)

    return run_for(options, work, told)


def told(out: Path) -> str:
    """Draws the pictures of what is known, and returns the table."""
    save_pictures(out / "plots", pictures_of(out))
    return table_of(out)


if __name__ == "__main__":
    raise SystemExit(run_script(main))

"""Baselines on the same model, text and tokens: dense or small fine-tuning, and one-shot pruning.

Arms that train are runs of their own in OUTPUT_DIR/baselines, by the same trainer: one worker that holds everything,
whose batch is that of all workers together, so that steps and tokens are the same. Where the run has a teacher, they
are trained with it, too.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Array, Int32
from rich.console import Console

from jaxlm.data.batching.order import order
from jaxrun.store.journal import Journal
from jaxrun.store.opening import day_of
from jaxrun.store.run_folder import JOURNAL_NAME
from twistjax.comparison.pruning import Sparsity, Statistics, calibrate, choose_units, prune_unstructured
from twistjax.config import SELF, TwistConfig
from twistjax.report.results import Result, ResultFile, read_results, write_results
from twistjax.tickets.export import parameters
from twistjax.tickets.repair import refit
from twistjax.tickets.settings import REPAIR_ROWS
from twistjax.training.assignment import Assignment
from twistjax.training.central_model import open_trained
from twistjax.training.gather_scatter import Correction, Weights, corrected, gather
from twistjax.training.prepare import (
    LATER_KEYS,
    PreparedTraining,
    assignment_of,
    identity_of,
    load_weights,
    prepare,
    ranked,
    scorer_of,
)
from twistjax.training.rounds_plan import ticket_key
from twistjax.training.scoring import Scorer
from twistjax.training.trainer import Trainer
from twistjax.training.units import Kept, units_of

FOLDER = "baselines"
PATTERNS = {"50 %": Sparsity(0.5), "2:4": Sparsity(0.5, (2, 4))}
_BEGINNINGS: dict[Literal["base", "tuned"], str] = {"tuned": "", "base": " of the model before training"}
_CORRECTIONS: dict[Correction, str] = {"none": "", "inverse": ", corrected"}
Measure = Callable[[], tuple[list[float], int]]


class Bench:
    """The arms of a comparison; what several of them need is made once."""

    def __init__(self, config: TwistConfig, console: Console, prepared: PreparedTraining | None = None):
        """Checks the input; trains and loads nothing.

        Args:
            config: The run whose tickets are compared.
            console: Where results are shown.
            prepared: What the run works on; None reads it.

        Raises:
            UserError: Anything wrong with the input.
        """
        self.config, self.console = config, console
        self.prepared = prepared or prepare(config, day=day_of(Path(config.output_dir)))

    def run(self, only: Collection[str] | None = None) -> list[Result]:
        """Measures every arm that has no result yet, and writes OUTPUT_DIR/baselines.json after each.

        Args:
            only: Names of the arms to measure; None is all.

        Raises:
            KeyboardInterrupt: An arm that trains was interrupted; it resumes from there the next time.
        """
        run_dir = Path(self.config.output_dir)
        run_dir.mkdir(parents=True, exist_ok=True)
        baselines = self.config.baselines.model_dump(mode="json")
        about = identity_of(self.config, self.prepared) | {"baselines": baselines}
        about["data"] = about["data"]["digest"]
        told = read_results(run_dir)
        results = list(told.results) if told.config == about else []
        known = {(one.arm, one.kappa) for one in results}
        for arm, kappa, measure in self.arms():
            if (arm, kappa) in known or (only is not None and arm not in only):
                continue
            losses, count = measure()
            results.append(Result(arm=arm, kappa=kappa, losses=tuple(losses), parameters=count))
            write_results(run_dir, ResultFile(config=about, results=results))
            self.console.print(f"{arm}, kappa {kappa:g}: perplexity {results[-1].perplexity[0]:.2f}", highlight=False)
        return results

    def arms(self) -> Iterator[tuple[str, float, Measure]]:
        """Gives every arm's name, share kept, and what measures it: the losses of its draws, and its parameters."""
        kappas = [kappa for kappa in self.config.subnetworks.ladder if kappa < 1]
        yield "dense, before training", 1.0, partial(self._dense, "base")
        yield "dense, fine-tuned", 1.0, partial(self._dense, "tuned")
        if self._has_teacher:
            yield "dense, distilled", 1.0, partial(self._dense, "taught")
        for kappa in kappas:
            if self._is_trained():
                yield "TwIST ticket", kappa, partial(self._tickets, "trained", kappa)
            yield "ticket before training", kappa, partial(self._tickets, "base", kappa)
            for correction, note in _CORRECTIONS.items():
                yield f"random structure{note}", kappa, partial(self._random, kappa, correction)
                yield f"magnitude structure{note}", kappa, partial(self._chosen, "magnitude", kappa, correction)
                yield f"Wanda structure{note}", kappa, partial(self._chosen, "wanda", kappa, correction)
            yield "magnitude structure, repaired", kappa, partial(self._repaired, "magnitude", kappa)
            yield "Wanda structure, repaired", kappa, partial(self._repaired, "wanda", kappa)
        for of, note in _BEGINNINGS.items():
            for name, pattern in PATTERNS.items():
                yield f"magnitude {name}{note}", 0.5, partial(self._unstructured, of, "magnitude", pattern)
                yield f"Wanda {name}{note}", 0.5, partial(self._unstructured, of, "wanda", pattern)
                yield f"SparseGPT {name}{note}", 0.5, partial(self._unstructured, of, "sparsegpt", pattern)
        for kappa in kappas:
            yield "small dense, fine-tuned", kappa, partial(self._small, kappa, taught=False)
            if self._has_teacher:
                yield "small dense, distilled", kappa, partial(self._small, kappa, taught=True)

    @cached_property
    def base(self) -> Weights:
        """The model to start from."""
        return load_weights(self.config)

    @cached_property
    def trained(self) -> Weights:
        """The central model of the run that is compared."""
        return open_trained(self.config.output_dir, self.prepared).weights

    @cached_property
    def assignment(self) -> Assignment:
        """Which units tickets have: those of the run, or what a run from the same model would have."""
        if self._is_trained():
            return open_trained(self.config.output_dir, self.prepared).assignment
        return assignment_of(self.config, self.prepared, ranked(self.config, self.prepared, self.base))

    @cached_property
    def tuned(self) -> Weights:
        """The dense model after its fine-tuning."""
        return self._fine_tuned("dense", self.prepared, lambda: dict(self.base))

    @cached_property
    def taught(self) -> Weights:
        """The dense model after it learnt what the run's teacher expects."""
        return self._fine_tuned("dense-distilled", self.prepared, lambda: dict(self.base), taught=True)

    @cached_property
    def scorers(self) -> dict[Correction, Scorer]:
        """Score subnetworks with each correction."""
        kinds: tuple[Correction, ...] = ("none", "inverse", self.config.subnetworks.correction)
        return {kind: scorer_of(self.config, self.prepared, kind) for kind in kinds}

    @cached_property
    def calibration(self) -> Int32[np.ndarray, "rows length"]:
        """Training rows that one-shot pruning looks at."""
        return self._rows(self.config.baselines.calibration_rows)

    @cached_property
    def statistics(self) -> list[Statistics]:
        """Input statistics of the dense model's projections."""
        return calibrate(self.prepared.model, self.tuned, self.calibration)

    @property
    def _has_teacher(self) -> bool:
        """Whether there is a teacher of a whole model, too."""
        return self.config.training.teacher not in (None, SELF)

    def _rows(self, count: int) -> Int32[np.ndarray, "rows length"]:
        """Returns a fixed random choice of training rows."""
        tokens = self.prepared.train.tokens
        return tokens[order(len(tokens), self.config.seed, 0)[:count]]

    def _is_trained(self) -> bool:
        """Whether there is a run to compare, and it has ended."""
        run_dir = Path(self.config.output_dir)
        if not (run_dir / JOURNAL_NAME).is_file():
            return False
        with Journal.read(run_dir) as journal:
            return bool(journal.events("finish"))

    def _dense(self, of: Literal["base", "tuned", "taught"]) -> tuple[list[float], int]:
        weights = getattr(self, of)
        return [self.scorers["none"].model(self.prepared.model, weights)], parameters(weights)

    def _tickets(self, of: Literal["base", "trained"], kappa: float) -> tuple[list[float], int]:
        weights = self.base if of == "base" else self.trained
        return self._drawn(weights, self.assignment, kappa, self.config.subnetworks.correction)

    def _random(self, kappa: float, correction: Correction) -> tuple[list[float], int]:
        return self._drawn(self.tuned, Assignment(self.prepared.units), kappa, correction)

    def _drawn(
        self, weights: Weights, assignment: Assignment, kappa: float, correction: Correction
    ) -> tuple[list[float], int]:
        scorer, count = self.scorers[correction], self.config.baselines.draws if assignment.draws else 1
        hands = [assignment.draw(ticket_key(self.config.seed, number), kappa) for number in range(count)]
        count = parameters(scorer.cut(weights, hands[0], kappa))
        return [scorer.ticket(weights, kept, kappa) for kept in hands], count

    def _small(self, kappa: float, *, taught: bool) -> tuple[list[float], int]:
        units = self.prepared.units
        small = units.subnetwork(kappa)
        kept = self.assignment.draw(ticket_key(self.config.seed, 0), kappa)

        def start() -> dict[str, Array]:
            return corrected(
                gather(self.base, kept, units), units, kappa, self.config.subnetworks.correction, full=False
            )

        prepared = replace(self.prepared, model=small, units=units_of(small, [1.0], 1))
        name = f"small-{kappa:g}{'-distilled' if taught else ''}"
        weights = self._fine_tuned(name, prepared, start, taught=taught)
        return [self.scorers["none"].model(small, weights)], parameters(weights)

    def _chosen(
        self, method: Literal["magnitude", "wanda"], kappa: float, correction: Correction
    ) -> tuple[list[float], int]:
        scorer, kept = self.scorers[correction], self._choice(method, kappa)
        return [scorer.ticket(self.tuned, kept, kappa)], parameters(scorer.cut(self.tuned, kept, kappa))

    def _repaired(self, method: Literal["magnitude", "wanda"], kappa: float) -> tuple[list[float], int]:
        scorer, whole, small = self.scorers["none"], self.prepared.model, self.prepared.units.subnetwork(kappa)
        cut = scorer.cut(self.tuned, self._choice(method, kappa), kappa)
        fitted = refit(whole, self.tuned, small, cut, self._rows(REPAIR_ROWS))
        return [scorer.model(small, fitted)], parameters(fitted)

    def _choice(self, method: Literal["magnitude", "wanda"], kappa: float) -> Kept:
        statistics = self.statistics if method == "wanda" else []
        return choose_units(self.tuned, self.prepared.units, kappa, method, statistics)

    def _unstructured(
        self, of: Literal["base", "tuned"], method: Literal["magnitude", "wanda", "sparsegpt"], pattern: Sparsity
    ) -> tuple[list[float], int]:
        weights = self.base if of == "base" else self.tuned
        pruned = prune_unstructured(self.prepared.model, weights, self.calibration, method, pattern)
        return [self.scorers["none"].model(self.prepared.model, pruned)], parameters(pruned)

    def _fine_tuned(
        self, name: str, prepared: PreparedTraining, start: Callable[[], dict[str, Array]], *, taught: bool = False
    ) -> Weights:
        """Trains a model as a whole, by the text or the run's teacher, on as many rows a step as all workers have."""
        config, training = self.config, self.config.training
        workers, run_dir = config.subnetworks.workers, Path(config.output_dir)
        changes: dict[str, Any] = {
            "output_dir": str(run_dir / FOLDER / name),
            "subnetworks": config.subnetworks.model_copy(
                update={"workers": 1, "kappa": 1.0, "correction": "none", "workers_at_once": None, "block": 1}
                | {"protected_first": 0, "protected_last": 0}
                | _plain("subnetworks")
            ),
            "training": training.model_copy(
                update={
                    "batch_size": training.batch_size * workers,
                    "optimizer_state": "carry",
                    "learning_rate": config.baselines.learning_rate or training.learning_rate,
                    "train_samples": prepared.plan.rounds * prepared.plan.samples_per_round,
                }
                | _plain("training")
                | ({key: getattr(training, key) for key in ("teacher", "teacher_share")} if taught else {})
            ),
        }
        own = config.model_copy(update=changes)
        units = units_of(prepared.model, [1.0], 1)
        trainer = Trainer(
            own,
            console=self.console,
            prepared=replace(prepared, units=units, plan=replace(prepared.plan, config=own)),
            start=start,
            labelled=[run_dir, *sorted(run_dir.glob(f"{FOLDER}/*"))],
        )
        if trainer.run():
            raise KeyboardInterrupt
        return open_trained(own.output_dir, prepared).weights


def _plain(section: str) -> dict[str, Any]:
    """Returns the keys of a section with which training goes beyond TwIST, off."""
    plain = TwistConfig.model_fields[section].default
    return {key: getattr(plain, key) for key in LATER_KEYS[section]}

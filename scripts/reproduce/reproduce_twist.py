"""TwIST's experiment on one model and one text: tickets against fine-tuning and pruning, ablations, memory and speed.

    python scripts/reproduce/reproduce_twist.py configs/twistjax/reproduce.yaml [key=value ...]
        [--from-scratch gpt2|tiny] [--parts pretrain ladder baselines single ablations cost speed] [--minutes 9]

Everything lands in the config's output_dir, part by part: what is there is not done again, and a training resumes from
its last checkpoint, so the same command may be given as often as it takes. `--minutes` stops it by itself, as Ctrl-C
does. The tables are printed at the end of every call, and written to tables.md beside the runs.

- pretrain: with --from-scratch, a dense model of that shape, with the tokenizer of the config's model
- ladder: one training for all kappas, and random tickets of each
- baselines: dense and small dense fine-tuning, pruning in one shot, tickets before any training
- single: a training for each kappa of --single alone
- ablations: one thing changed at a time, at the first kappa of --single; --ablations names some of them
- cost: memory and speed of a worker's local steps against a whole model's (data parallelism)
- speed: size, and tokens a second of reading and writing on this machine, through this project and, where
  .venv-reference is, through transformers and PyTorch
"""

from jaxrun.process.script import run_script

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from twist_experiment import TwistExperiment, options_of, read_kept, run_for

from jaxlm.models.computation import compute_dtype, remat_choices
from jaxlm.models.functional import Functional
from jaxlm.models.perplexity import perplexity
from jaxrun.plots.markdown import table
from jaxrun.store.journal import Journal
from twistjax.comparison.baselines import Bench
from twistjax.config import TwistConfig
from twistjax.report.results import FILE_NAME as BASELINES
from twistjax.report.ticket_file import FILE_NAME as TICKETS
from twistjax.tickets.export import parameters
from twistjax.tickets.sampling import draw_tickets, write_tickets
from twistjax.training.central_model import open_trained
from twistjax.training.local_training import Moments, Worker
from twistjax.training.prepare import adam_of, prepare, scorer_of
from twistjax.training.rounds import needs
from twistjax.training.units import units_of

PARTS = ("pretrain", "ladder", "baselines", "single", "ablations", "cost", "speed")
ABLATIONS = {
    "correction none": ["subnetworks.correction=none"],
    "correction full": ["subnetworks.correction=full"],
    "moments carried": ["training.optimizer_state=carry"],
    "moments fresh": ["training.optimizer_state=fresh"],
    "protected none": ["subnetworks.protected_first=0", "subnetworks.protected_last=0"],
    "protected 1 + 1": ["subnetworks.protected_first=1", "subnetworks.protected_last=1"],
    "local steps 5": ["training.local_steps=5"],
    "local steps 50": ["training.local_steps=50"],
    "block 16": ["subnetworks.block=16"],
    "block 256": ["subnetworks.block=256"],
    "workers 2": ["subnetworks.workers=2"],
    "workers 8": ["subnetworks.workers=8"],
    "half the rate": ["training.learning_rate={half}"],
    "twice the rate": ["training.learning_rate={twice}"],
    "half the samples": ["training.train_samples={fewer}"],
    "twice the samples": ["training.train_samples={more}"],
}


class Experiment(TwistExperiment):
    """All parts over one model and one text."""

    def ladder(self) -> None:
        """One training for all kappas."""
        self._tickets(self.changed("ladder"), self.options.draws)

    def baselines(self) -> None:
        """Everything else one could do with the same model, text and tokens."""
        config = self.changed("ladder")
        Bench(config, self.console, prepare(config, self.text)).run()

    def single(self) -> None:
        """A training for each of some kappas."""
        for kappa in self.options.single:
            self._tickets(self.changed(f"single-{kappa:g}", [f"subnetworks.kappa={kappa}"]), self.options.draws)

    def ablations(self) -> None:
        """One thing changed at a time."""
        kappa, training = self.options.single[0], self.base.training
        words = {"half": training.learning_rate / 2, "twice": training.learning_rate * 2}
        words |= {"fewer": (training.train_samples or 0) // 2, "more": (training.train_samples or 0) * 2}
        for name in self.options.ablations:
            overrides = [f"subnetworks.kappa={kappa}", *(one.format(**words) for one in ABLATIONS[name])]
            self._tickets(self.changed(f"ablation-{name.replace(' ', '-')}", overrides), 8)

    def cost(self) -> None:
        """Local steps of one worker alone on this device."""
        found = []
        for kappa in sorted({*self.config.subnetworks.ladder, 1.0}):
            config = self.changed("cost", [f"subnetworks.kappa={kappa}", "subnetworks.correction=inverse"])
            found.append({"kappa": kappa, **self._local_steps(config, kappa)})
            told = {"device": jax.devices()[0].device_kind, "rows": self.base.training.batch_size, "steps": found}
            self.keep("cost.json", told | {"length": self.base.data.max_length})

    def _local_steps(self, config: TwistConfig, kappa: float) -> dict[str, float]:
        """Returns the bytes of a worker's program, and the tokens a second of its steps, data parallelism's if 1."""
        spec, training = config.model, config.training
        if self.options.from_scratch:
            config = config.model_copy(update={"model": spec.model_copy(update=self.unmade)})
        prepared = prepare(config, self.text)
        units = prepared.units if kappa < 1 else units_of(prepared.model, [1.0], 1)
        model = Functional(units.subnetwork(kappa), dtype=compute_dtype(spec), **remat_choices(spec)[0]._asdict())
        worker = Worker(model, units, kappa, "inverse", adam_of(training))
        weights = {path: jnp.full(shape, 0.02, jnp.float32) for path, shape in model.shapes.items()}
        rows = np.arange(training.local_steps * training.batch_size).reshape(training.local_steps, -1)
        rows = rows % len(prepared.train.tokens)
        fixed = (prepared.train.tokens[rows], prepared.train.targets[rows], np.zeros(len(rows), np.float32))
        moments = jax.tree.map(jnp.zeros_like, weights), jax.tree.map(jnp.zeros_like, weights)

        def steps(weights: Any, mu: Any, nu: Any) -> Any:
            weights, found, losses = worker.train(weights, Moments(mu, nu), jnp.int32(0), *map(jnp.asarray, fixed))
            return weights, found.mu, found.nu, losses

        program = jax.jit(steps, donate_argnums=(0, 1, 2)).lower(weights, *moments).compile()
        times, state = [], (weights, *moments)
        for _ in range(3):
            begun = time.perf_counter()
            *state, losses = program(*state)
            jax.block_until_ready(losses)
            times.append(time.perf_counter() - begun)
        tokens = len(rows) * training.batch_size * config.data.max_length
        return {"parameters": parameters(weights), "bytes": needs(program), "pace": tokens / min(times[1:])}

    def _tickets(self, config: TwistConfig, draws: int) -> None:
        """Trains, and scores random tickets of every kappa."""
        self.train(config)
        prepared = prepare(config, self.text)
        run = open_trained(config.output_dir, prepared)
        known = read_kept(run.run_dir / TICKETS).get("kappas", {})
        scorer, drawn = scorer_of(config, prepared), []
        full = perplexity(scorer.full(run.weights, config.subnetworks.ladder[0]))
        for kappa in config.subnetworks.ladder:
            if len(known.get(f"{kappa:g}", {}).get("losses", [])) < draws:
                drawn.append(draw_tickets(run.weights, run.assignment, scorer, kappa, seed=config.seed, draws=draws))
                write_tickets(run.run_dir, drawn, {"round": run.round, "seed": config.seed, "full_perplexity": full})


def tables(out: Path) -> str:
    """Returns everything that was measured, in Markdown."""
    parts = []
    ladder = out / "ladder"
    if results := read_kept(ladder / BASELINES).get("results"):
        rows = []
        for one in sorted(results, key=lambda one: (-one["kappa"], _mean(one["losses"]))):
            values = [perplexity(loss) for loss in one["losses"]]
            told = [f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else f"{values[0]:.2f}"]
            rows.append([one["arm"], f"{one['kappa']:g}", *told, f"{min(values):.2f}", f"{one['parameters']:,}"])
        parts.append(table(["arm", "share kept", "perplexity", "best", "parameters"], rows))
    rows = []
    for path in sorted(out.glob(f"*/{TICKETS}")):
        told = read_kept(path)
        with Journal.read(path.parent) as journal:
            clock = journal.get("clock", {})
        pace = f"{clock['tokens'] / clock['training_s']:,.0f}" if clock.get("training_s") else "-"
        for kappa, entry in told["kappas"].items():
            found, count = entry["perplexity"], len(entry["losses"])
            mean = f"{found['mean']:.2f} ± {found['sd']:.2f}"
            full = f"{told['facts']['full_perplexity']:.2f}"
            rows.append([path.parent.name, kappa, str(count), mean, f"{found['best']:.2f}", full, pace])
    if rows:
        parts.append(table(["run", "kappa", "tickets", "perplexity", "best", "full model", "tokens/s"], rows))
    if cost := read_kept(out / "cost.json"):
        rows = [
            [
                f"{one['kappa']:g}",
                f"{one['parameters']:,}",
                f"{one['bytes'] / 2**30:.2f}",
                f"{one['pace']:,.0f}",
            ]
            for one in cost["steps"]
        ]
        title = f"One worker, {cost['rows']} x {cost['length']} tokens a step, {cost['device']}"
        parts.append(f"{title}:\n\n{table(['kappa', 'parameters', 'GiB', 'tokens/s'], rows)}")
    for path in sorted(out.glob("speed-*.json")):
        told = read_kept(path)
        columns = [name for name in told["models"][0] if name != "kappa"]
        rows = [[f"{one['kappa']:g}", *(f"{one[name]:,.0f}" for name in columns)] for one in told["models"]]
        parts.append(f"{told['device']}, {told['dtype']}:\n\n{table(['kappa', *columns], rows)}")
    return "\n\n".join(parts)


def _mean(losses: Sequence[float]) -> float:
    return sum(perplexity(loss) for loss in losses) / len(losses)


def arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = options_of(__doc__, PARTS)
    parser.add_argument("--single", nargs="+", type=float, default=[0.5])
    parser.add_argument("--ablations", nargs="+", choices=ABLATIONS, default=list(ABLATIONS))
    parser.add_argument("--draws", type=int, default=32)
    return parser.read()


def main() -> int:
    """Does the parts in order and prints the tables; exit code 130 where time ran out before all were done."""
    options = arguments()

    def work() -> None:
        experiment = Experiment(options)
        for part in PARTS:
            if part in options.parts:
                getattr(experiment, part)()

    return run_for(options, work, tables)


if __name__ == "__main__":
    raise SystemExit(run_script(main))

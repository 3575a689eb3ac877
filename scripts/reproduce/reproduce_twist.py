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
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import transformers
from rich.console import Console
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from jaxlm.data.text_rows import TextRows, read_text
from jaxlm.files.tokenizer import load_tokenizer, save_tokenizer
from jaxlm.models.computation import compute_dtype, remat_choices
from jaxlm.models.functional import Functional
from jaxlm.models.perplexity import perplexity
from jaxrun.config.config import load_config
from jaxrun.config.script_options import ScriptOptions
from jaxrun.files.atomic import write_atomic
from jaxrun.files.folders import replace_folder
from jaxrun.plots.markdown import table
from jaxrun.store.journal import Journal
from jaxrun.store.run_folder import JOURNAL_NAME
from twistjax.comparison.baselines import Bench
from twistjax.comparison.measure import measure_model
from twistjax.config import TwistConfig
from twistjax.report.results import FILE_NAME as BASELINES
from twistjax.report.ticket_file import FILE_NAME as TICKETS
from twistjax.tickets.export import export, parameters
from twistjax.tickets.hf_ticket import save_ticket
from twistjax.tickets.sampling import draw_tickets, write_tickets
from twistjax.training.central_model import open_trained
from twistjax.training.gather_scatter import corrected, gather
from twistjax.training.local_training import Moments, Worker
from twistjax.training.prepare import adam_of, load_weights, prepare, scorer_of
from twistjax.training.rounds import needs
from twistjax.training.rounds_plan import ticket_key
from twistjax.training.trainer import Trainer
from twistjax.training.units import units_of

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / ".venv-reference" / "bin" / "python"
PARTS = ("pretrain", "ladder", "baselines", "single", "ablations", "cost", "speed")
SHAPES = {
    "gpt2": {"n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024},
    "tiny": {"n_embd": 128, "n_layer": 4, "n_head": 8, "n_positions": 512},
}
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


class Experiment:
    """All parts over one model and one text."""

    def __init__(self, options: argparse.Namespace):
        """Reads the config, makes the shape to pre-train, and reads or encodes the text."""
        self.options, self.console = options, Console(width=110)
        self.config = load_config(TwistConfig, options.config, options.overrides)
        self.out = Path(self.config.output_dir)
        self.out.mkdir(parents=True, exist_ok=True)
        if not jax.config.jax_compilation_cache_dir:
            jax.config.update("jax_compilation_cache_dir", str((self.out / "xla").absolute()))
        self.base = self.config
        if options.from_scratch:
            self._write_shape(self.out / "shape")
            self.base = self.changed("base", [f"model.model_name_or_path={self.out}/base"])
        self.text = self._rows()

    def changed(self, name: str, overrides: Sequence[str] = ()) -> TwistConfig:
        """Returns the config of a run of its own, which begins with the pre-trained model where there is one."""
        tree = self.base.model_dump(mode="json")
        overrides = (*overrides, f"output_dir={self.out}/{name}")
        return load_config(TwistConfig, tree, overrides, source=str(self.options.config))

    def pretrain(self) -> None:
        """Trains all of the shape, and writes it where everything else begins."""
        if not self.options.from_scratch or (self.out / "base").is_dir():
            return
        training = self.base.training
        config = self.changed(
            "pretrain",
            [
                f"model.model_name_or_path={self.out}/shape",
                "model.random_init=true",
                "subnetworks={workers: 1, kappa: 1.0, correction: none}",
                f"training.batch_size={training.batch_size * self.base.subnetworks.workers}",
                "training.optimizer_state=carry",
                f"training.train_samples={self.options.pretrain_samples}",
                f"training.learning_rate={self.options.pretrain_rate}",
                "training.weight_decay=0.1",
                "training.adam_beta2=0.95",
            ],
        )
        self._train(config)
        run = open_trained(config.output_dir, prepare(config, self.text))
        export(run, self.out / "base", 1.0, "best", dtype=np.dtype(np.float32))

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
            self._keep("cost.json", told | {"length": self.base.data.max_length})

    def speed(self) -> None:
        """Size and speed of tickets and of the full model; their weights do not matter for it."""
        device = jax.devices()[0]
        dtype = "float32" if device.platform == "cpu" else "bfloat16"
        found = []
        for kappa, folder in self._models(dtype):
            told = measure_model(
                str(folder), data=None, max_length=256, max_samples=None, batch_size=8, new_tokens=64, dtype=dtype
            )
            entry = {"kappa": kappa, **told}
            if device.platform == "cpu" and REFERENCE.exists():
                command = [str(REFERENCE), str(Path(__file__).with_name("measure_transformers.py")), str(folder)]
                environment = os.environ | {"PYTHONPATH": str(ROOT)}
                told = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
                entry |= json.loads(told)
            found.append(entry)
            self._keep(f"speed-{device.platform}.json", {"device": device.device_kind, "dtype": dtype, "models": found})

    def _models(self, dtype: str) -> Iterator[tuple[float, Path]]:
        """Writes a ticket of every kappa and the full model; gives their folders."""
        config = self.changed("ladder")
        trained = (Path(config.output_dir) / JOURNAL_NAME).is_file()
        if not trained and not Path(config.model.model_name_or_path).exists():  # a shape that is not pre-trained yet
            config = config.model_copy(update={"model": config.model.model_copy(update=self._unmade)})
        prepared = prepare(config, self.text)
        weights = open_trained(config.output_dir, prepared).weights if trained else load_weights(config)
        (self.out / "models").mkdir(exist_ok=True)
        for kappa in sorted({*config.subnetworks.ladder, 1.0}):
            folder = self.out / "models" / f"{kappa:g}-{dtype}"
            small, values = prepared.model, weights
            if kappa < 1:
                kept, small = prepared.units.draw(ticket_key(config.seed, 0), kappa), prepared.units.subnetwork(kappa)
                cut = gather(weights, kept, prepared.units)
                values = corrected(cut, prepared.units, kappa, config.subnetworks.correction, full=False)
            with replace_folder(folder) as partial:
                save_ticket(partial, small, values, dtype=jnp.dtype(dtype), tokenizer=prepared.tokenizer)
            yield kappa, folder

    @property
    def _unmade(self) -> dict[str, Any]:
        """The model section where a shape is not trained, and need not be."""
        return {"model_name_or_path": f"{self.out}/shape", "random_init": True}

    def _local_steps(self, config: TwistConfig, kappa: float) -> dict[str, float]:
        """Returns the bytes of a worker's program, and the tokens a second of its steps, data parallelism's if 1."""
        spec, training = config.model, config.training
        if self.options.from_scratch:
            config = config.model_copy(update={"model": spec.model_copy(update=self._unmade)})
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
        self._train(config)
        prepared = prepare(config, self.text)
        run = open_trained(config.output_dir, prepared)
        known = _read(run.run_dir / TICKETS).get("kappas", {})
        scorer, drawn = scorer_of(config, prepared), []
        full = perplexity(scorer.full(run.weights, config.subnetworks.ladder[0]))
        for kappa in config.subnetworks.ladder:
            if len(known.get(f"{kappa:g}", {}).get("losses", [])) < draws:
                drawn.append(draw_tickets(run.weights, run.assignment, scorer, kappa, seed=config.seed, draws=draws))
                write_tickets(run.run_dir, drawn, {"round": run.round, "seed": config.seed, "full_perplexity": full})

    def _train(self, config: TwistConfig) -> None:
        if Trainer(config, console=self.console, prepared=prepare(config, self.text)).run():
            raise KeyboardInterrupt

    def _write_shape(self, folder: Path) -> None:
        """Writes config.json and the tokenizer of the model to pre-train."""
        if folder.is_dir():
            return
        tokenizer = load_tokenizer(self.config.model.model_name_or_path)
        vocabulary = -(-len(tokenizer) // 128) * 128
        shape = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": vocabulary}
        shape |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        with replace_folder(folder) as temporary:
            text = json.dumps(shape | SHAPES[self.options.from_scratch], indent=2) + "\n"
            (temporary / "config.json").write_text(text, encoding="utf-8")
            save_tokenizer(temporary, tokenizer)

    def _rows(self) -> tuple[TextRows, TextRows]:
        """Returns training and validation rows, encoded at the first call and kept."""
        path, data = self.out / "rows.safetensors", self.config.data
        about = json.dumps(data.model_dump(mode="json"), sort_keys=True)
        if path.is_file():
            with safe_open(path, framework="numpy") as file:
                if (file.metadata() or {}).get("data") == about:
                    kept = load_file(path)
                    return _as_rows(kept, "train"), _as_rows(kept, "validation")
        both = read_text(data, load_tokenizer(self.config.model.model_name_or_path))
        arrays = {}
        for name, rows in zip(("train", "validation"), both, strict=True):
            arrays[f"{name}.tokens"] = rows.tokens.astype(np.uint16 if rows.tokens.max() < 2**16 else np.uint32)
            arrays[f"{name}.targets"] = np.packbits(rows.targets, axis=1)
        save_file(arrays, path, metadata={"data": about})
        return both

    def _keep(self, name: str, content: Mapping[str, Any]) -> None:
        write_atomic(self.out / name, json.dumps(content, indent=2) + "\n")


def _as_rows(kept: Mapping[str, np.ndarray], name: str) -> TextRows:
    tokens = kept[f"{name}.tokens"].astype(np.int32)
    targets = np.unpackbits(kept[f"{name}.targets"], axis=1, count=tokens.shape[1]).astype(bool)
    return TextRows(name, tokens, targets)


def tables(out: Path) -> str:
    """Returns everything that was measured, in Markdown."""
    parts = []
    ladder = out / "ladder"
    if results := _read(ladder / BASELINES).get("results"):
        rows = []
        for one in sorted(results, key=lambda one: (-one["kappa"], _mean(one["losses"]))):
            values = [perplexity(loss) for loss in one["losses"]]
            told = [f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else f"{values[0]:.2f}"]
            rows.append([one["arm"], f"{one['kappa']:g}", *told, f"{min(values):.2f}", f"{one['parameters']:,}"])
        parts.append(table(["arm", "share kept", "perplexity", "best", "parameters"], rows))
    rows = []
    for path in sorted(out.glob(f"*/{TICKETS}")):
        told = _read(path)
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
    if cost := _read(out / "cost.json"):
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
        told = _read(path)
        columns = [name for name in told["models"][0] if name != "kappa"]
        rows = [[f"{one['kappa']:g}", *(f"{one[name]:,.0f}" for name in columns)] for one in told["models"]]
        parts.append(f"{told['device']}, {told['dtype']}:\n\n{table(['kappa', *columns], rows)}")
    return "\n\n".join(parts)


def _mean(losses: Sequence[float]) -> float:
    return sum(perplexity(loss) for loss in losses) / len(losses)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = ScriptOptions(__doc__, TwistConfig)
    parser.add_argument("config", type=Path)
    parser.add_argument("--from-scratch", choices=SHAPES)
    parser.add_argument("--pretrain-samples", type=int, default=120_000)
    parser.add_argument("--pretrain-rate", type=float, default=6e-4)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--single", nargs="+", type=float, default=[0.5])
    parser.add_argument("--ablations", nargs="+", choices=ABLATIONS, default=list(ABLATIONS))
    parser.add_argument("--draws", type=int, default=32)
    parser.add_argument("--minutes", type=float)
    return parser.read()


def main() -> int:
    """Does the parts in order and prints the tables; exit code 130 where time ran out before all were done."""
    options = arguments()
    transformers.logging.set_verbosity_error()
    code = 0
    if options.minutes is not None:
        timer = threading.Timer(options.minutes * 60, os.kill, (os.getpid(), signal.SIGINT))
        timer.daemon = True
        timer.start()
    out = None
    try:
        experiment = Experiment(options)
        out = experiment.out
        for part in PARTS:
            if part in options.parts:
                getattr(experiment, part)()
    except KeyboardInterrupt:
        print("stopped; run the same command again to resume", file=sys.stderr)
        code = 130
    if out is not None:
        write_atomic(out / "tables.md", tables(out) + "\n")
        print(tables(out))
    return code


if __name__ == "__main__":
    sys.exit(run_script(main))

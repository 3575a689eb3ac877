"""One model and one text, of which an experiment on subnetworks makes its runs: what its scripts share."""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
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
from jaxrun.config.config import load_config
from jaxrun.config.script_options import ScriptOptions
from jaxrun.files.atomic import write_atomic
from jaxrun.files.folders import replace_folder
from jaxrun.store.run_folder import JOURNAL_NAME
from twistjax.comparison.measure import measure_model
from twistjax.config import TwistConfig
from twistjax.tickets.export import export
from twistjax.tickets.hf_ticket import save_ticket
from twistjax.training.central_model import open_trained
from twistjax.training.gather_scatter import corrected, gather
from twistjax.training.prepare import load_weights, prepare
from twistjax.training.rounds_plan import ticket_key
from twistjax.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / ".venv-reference" / "bin" / "python"
SHAPES = {
    "gpt2": {"n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024},
    "tiny": {"n_embd": 128, "n_layer": 4, "n_head": 8, "n_positions": 512},
}


class TwistExperiment:
    """Runs over one model and one text; everything lands in the config's output_dir."""

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
        self.train(config)
        run = open_trained(config.output_dir, prepare(config, self.text))
        export(run, self.out / "base", 1.0, "best", dtype=np.dtype(np.float32))

    def train(self, config: TwistConfig, labelled: Sequence[Path] = ()) -> None:
        """Trains a run to its end; `labelled` is as of `Trainer`.

        Raises:
            KeyboardInterrupt: It was interrupted.
        """
        prepared = prepare(config, self.text)
        if Trainer(config, console=self.console, prepared=prepared, labelled=labelled).run():
            raise KeyboardInterrupt

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
            self.keep(f"speed-{device.platform}.json", {"device": device.device_kind, "dtype": dtype, "models": found})

    def keep(self, name: str, content: Mapping[str, Any]) -> None:
        """Writes what was found to a file of the output_dir."""
        (self.out / name).parent.mkdir(exist_ok=True)
        write_atomic(self.out / name, json.dumps(content, indent=2) + "\n")

    @property
    def unmade(self) -> dict[str, Any]:
        """The model section where a shape is not trained, and need not be."""
        return {"model_name_or_path": f"{self.out}/shape", "random_init": True}

    def _models(self, dtype: str) -> Iterator[tuple[float, Path]]:
        """Writes a ticket of every kappa and the full model; gives their folders."""
        config = self.changed("ladder")
        trained = (Path(config.output_dir) / JOURNAL_NAME).is_file()
        if not trained and not Path(config.model.model_name_or_path).exists():  # a shape that is not pre-trained yet
            config = config.model_copy(update={"model": config.model.model_copy(update=self.unmade)})
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


def _as_rows(kept: Mapping[str, np.ndarray], name: str) -> TextRows:
    tokens = kept[f"{name}.tokens"].astype(np.int32)
    targets = np.unpackbits(kept[f"{name}.targets"], axis=1, count=tokens.shape[1]).astype(bool)
    return TextRows(name, tokens, targets)


def read_kept(path: Path) -> dict[str, Any]:
    """Returns what a JSON file of an experiment holds; nothing where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def options_of(about: str | None, parts: Collection[str]) -> ScriptOptions:
    """Returns the options that experiments share."""
    parser = ScriptOptions(about, TwistConfig)
    parser.add_argument("config", type=Path)
    parser.add_argument("--from-scratch", choices=SHAPES)
    parser.add_argument("--pretrain-samples", type=int, default=120_000)
    parser.add_argument("--pretrain-rate", type=float, default=6e-4)
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--minutes", type=float)
    return parser


def run_for(options: argparse.Namespace, work: Callable[[], object], tables: Callable[[Path], str]) -> int:
    """Works until done, or interrupted, which --minutes may do; then writes and prints what is known so far.

    Args:
        options: The command line.
        work: Does all parts.
        tables: Makes Markdown of what is in the output_dir.

    Returns:
        The exit code, 0 or 130.
    """
    transformers.logging.set_verbosity_error()
    out, code = Path(load_config(TwistConfig, options.config, options.overrides).output_dir), 0
    if options.minutes is not None:
        timer = threading.Timer(options.minutes * 60, os.kill, (os.getpid(), signal.SIGINT))
        timer.daemon = True
        timer.start()
    try:
        work()
    except KeyboardInterrupt:
        print("stopped; run the same command again to resume", file=sys.stderr)
        code = 130
    if out.is_dir():
        told = tables(out)
        write_atomic(out / "tables.md", told + "\n")
        print(told)
    return code

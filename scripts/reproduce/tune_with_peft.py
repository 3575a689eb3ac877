"""Configurations tuned one at a time with PEFT and the Trainer of transformers: the other side of reproduce_alto.py.

    python scripts/reproduce/tune_with_peft.py JOB.json OUT.json

The job names a model folder, a file of rows and configurations:

    {"model": FOLDER, "rows": ROWS.json, "configurations": [{"name", "rank", "learning_rate", "batch_size", "steps",
     "warmup_steps", "weight_decay", "lr_scheduler_type", "max_grad_norm", "seed"}, ...]}

With `beta` and `loss_type` a configuration is of preference pairs, and dpo_with_peft.py trains it.

Rows are {"train": [...], "validation": [...]} of {"ids", "labels"}, training rows in the order in which they are met.
Needs PyTorch, transformers and peft, and the checkout of this project on PYTHONPATH. Trains as a careful user would: a
bfloat16 base with float32 adapters under autocast, scaled-dot-product attention, a fused AdamW, batches padded to
their own longest row, no gradient checkpointing, no logging and no checkpoints on the way.

For each configuration OUT.json says `setup_s` (base, adapter and Trainer made anew), `step_s` (mean of the steps after
the first tenth, the device waited for at both ends), `evaluation_s` (all validation rows once) and `validation_loss`
(mean over all target tokens); beside them `imports_s`, which a process pays once.
"""

from jaxrun.process.script import run_script

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

BEGUN = time.perf_counter()
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402
from peft import LoraConfig, get_peft_model  # noqa: E402
from torch.utils.data import SequentialSampler  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from jaxrun.config.script_options import ScriptOptions  # noqa: E402

EVALUATION_ROWS = 64


class InOrder(Trainer):
    """A Trainer that meets its rows in the order of the file."""

    def _get_train_sampler(self, *_: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


class StepTimes(TrainerCallback):
    """Times the steps after the first tenth."""

    def __init__(self, steps: int):
        """Leaves out the first tenth, in which memory is allocated and kernels are chosen."""
        self.skip, self.begun, self.ended, self.count = max(1, steps // 10), 0.0, 0.0, 0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Reads the clock where the times begin and end."""
        if state.global_step == self.skip:
            self.begun = now()
        if state.global_step == state.max_steps:
            self.ended, self.count = now(), state.max_steps - self.skip

    @property
    def step_s(self) -> float:
        """Mean seconds of a step."""
        return (self.ended - self.begun) / self.count


def collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Pads a batch to its longest row."""
    length = max(len(row["ids"]) for row in rows)
    ids, labels, seen = [], [], []
    for row in rows:
        left = length - len(row["ids"])
        ids.append(row["ids"] + [0] * left)
        labels.append(row["labels"] + [-100] * left)
        seen.append([1] * len(row["ids"]) + [0] * left)
    return {
        name: torch.tensor(value) for name, value in (("input_ids", ids), ("labels", labels), ("attention_mask", seen))
    }


def adapted(folder: str, rank: int, *, liger: bool = False) -> Any:
    """Returns the base with a new adapter on all its linear projections, with Liger's kernels or its own."""
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
    base.config.use_cache = False
    if liger:
        from liger_kernel.transformers import _apply_liger_kernel_to_instance

        _apply_liger_kernel_to_instance(model=base)
    lora = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(base, lora)


def trainer_of(
    model: Any, one: dict[str, Any], rows: list[dict[str, list[int]]], scratch: Path, callback: TrainerCallback
) -> InOrder:
    """Returns a Trainer of one configuration that does nothing beside training and its callback."""
    on_gpu = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(scratch),
        per_device_train_batch_size=one["batch_size"],
        max_steps=one["steps"],
        learning_rate=one["learning_rate"],
        lr_scheduler_type=one["lr_scheduler_type"],
        warmup_steps=one["warmup_steps"],
        weight_decay=one["weight_decay"],
        max_grad_norm=one["max_grad_norm"],
        optim="adamw_torch_fused",
        bf16=on_gpu,
        use_cpu=not on_gpu,
        seed=one["seed"],
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=on_gpu,
        remove_unused_columns=False,
    )
    return InOrder(model=model, args=arguments, train_dataset=rows, data_collator=collate, callbacks=[callback])


def training_of(one: dict[str, Any]) -> tuple[Any, Any]:
    """Returns what makes the Trainer of a configuration, and what measures its model: by pairs where it has a β."""
    if "beta" not in one:
        return trainer_of, validation_loss
    from dpo_with_peft import pair_trainer_of, preference_accuracy

    return pair_trainer_of, preference_accuracy


def tune(job: dict[str, Any], one: dict[str, Any], rows: dict[str, Any], scratch: Path) -> dict[str, Any]:
    """Trains one configuration; returns its times and its validation loss."""
    begun = now()
    set_seed(one["seed"])
    model = adapted(job["model"], one["rank"])
    times = StepTimes(one["steps"])
    make, measure = training_of(one)
    trainer = make(model, one, rows["train"], scratch, times)
    setup_s = now() - begun
    trainer.train()
    begun = now()
    loss = measure(trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False), rows["validation"])
    return {
        **one,
        "setup_s": setup_s,
        "step_s": times.step_s,
        "evaluation_s": now() - begun,
        "validation_loss": loss,
    }


@torch.no_grad()
def validation_loss(model: Any, rows: list[dict[str, list[int]]], at_once: int = EVALUATION_ROWS) -> float:
    """Returns the mean loss over all targets of the rows, like lengths together, some rows at once."""
    model.eval()
    device = next(model.parameters()).device
    total, count = torch.zeros((), device=device), 0
    rows = sorted(rows, key=lambda row: len(row["ids"]))
    for first in range(0, len(rows), at_once):
        batch = {name: value.to(device) for name, value in collate(rows[first : first + at_once]).items()}
        labels = batch.pop("labels")[:, 1:]
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = model(**batch).logits[:, :-1]
        total += torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100, reduction="sum"
        )
        count += int((labels != -100).sum())
    return float(total / count)


def write(path: Path, content: dict[str, Any]) -> None:
    """Writes a file that is whole or absent, as a run that is stopped resumes from it."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


def now() -> float:
    """Returns the seconds of a clock, once the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def main() -> int:
    """Trains the configurations one after the other; what is stopped goes on with the first that is not done."""
    parser = ScriptOptions(__doc__)
    parser.add_argument("job", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.read()
    job, out = json.loads(options.job.read_text(encoding="utf-8")), options.out
    rows = json.loads(Path(job["rows"]).read_text(encoding="utf-8"))
    if torch.cuda.is_available():
        torch.zeros(1, device="cuda")
    told: dict[str, Any] = {
        "imports_s": now() - BEGUN,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "trials": [],
    }
    partial = out.with_suffix(".part")
    if partial.is_file():
        told["trials"] = json.loads(partial.read_text(encoding="utf-8"))["trials"]
    for one in job["configurations"][len(told["trials"]) :]:
        told["trials"].append(tune(job, one, rows, out.parent / "scratch"))
        write(partial, told)
    partial.replace(out)
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))

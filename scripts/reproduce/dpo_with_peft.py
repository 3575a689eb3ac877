"""Preference pairs tuned with PEFT, by TRL's DPOTrainer where trl is installed, else by a loop of its own.

    python scripts/reproduce/dpo_with_peft.py JOB.json OUT.json

Job, OUT.json and what is timed are those of tune_with_peft.py, whose base, adapters and arguments these are; a
configuration also has `beta` and `loss_type` (sigmoid or ipo), its batch size counts pairs, and rows are {"prompt_ids",
"chosen_ids", "rejected_ids"}. The reference is the base, the adapter off, and is computed at every step, as the
DPOTrainer does unless told otherwise. `validation_loss` is the share of pairs whose rejected answer has the higher
reward.
"""

from jaxrun.process.script import run_script

import inspect
import sys
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from tune_with_peft import EVALUATION_ROWS, InOrder, TrainerCallback, main, trainer_of

BY_TRL = find_spec("trl") is not None


def collate(pairs: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Pads the chosen answers of a batch, then the rejected ones, to the longest."""
    rows = [(pair["prompt_ids"], pair[answer]) for answer in ("chosen_ids", "rejected_ids") for pair in pairs]
    length = max(len(prompt) + len(answer) for prompt, answer in rows)
    padding = [length - len(prompt) - len(answer) for prompt, answer in rows]
    found = {
        "input_ids": [[*prompt, *answer, *[0] * left] for (prompt, answer), left in zip(rows, padding, strict=True)],
        "attention_mask": [[1] * (length - left) + [0] * left for left in padding],
        "answers": [
            [0] * len(prompt) + [1] * len(answer) + [0] * left
            for (prompt, answer), left in zip(rows, padding, strict=True)
        ],
    }
    return {name: torch.tensor(value) for name, value in found.items()}


def log_ratios(model: Any, batch: dict[str, torch.Tensor], *, average: bool = False) -> torch.Tensor:
    """Returns log-ratios of answers to the base alone, sums or means over tokens; float32 [2, pairs], chosen first."""
    inputs = {name: value for name, value in batch.items() if name != "answers"}
    counted = batch["answers"][:, 1:]

    def logps() -> torch.Tensor:
        logits = model(**inputs).logits[:, :-1].float()
        nll = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), inputs["input_ids"][:, 1:].flatten(), reduction="none"
        )
        sums = -(nll.view(counted.shape) * counted).sum(1)
        return sums / counted.sum(1) if average else sums

    bare = model.module if hasattr(model, "module") else model
    with torch.no_grad(), bare.disable_adapter():
        reference = logps()
    return (logps() - reference).view(2, -1)


class PairLoop(InOrder):
    """A Trainer of pairs without trl."""

    beta: float
    loss_type: str

    def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> torch.Tensor:
        """Returns the loss of a batch, as the DPOTrainer has it."""
        chosen, rejected = log_ratios(model, inputs, average=self.loss_type == "ipo")
        ahead = chosen - rejected
        if self.loss_type == "ipo":
            return (ahead - 1 / (2 * self.beta)).square().mean()
        return -torch.nn.functional.logsigmoid(self.beta * ahead).mean()


def pair_trainer_of(
    model: Any, one: dict[str, Any], rows: list[dict[str, list[int]]], scratch: Path, callback: TrainerCallback
) -> Any:
    """Returns a Trainer of one configuration, which meets pairs in the order of the file."""
    plain = trainer_of(model, one, [], scratch, callback)
    if BY_TRL:
        return _by_trl(plain.args, model, one, rows, callback)
    made = PairLoop(model=model, args=plain.args, train_dataset=rows, data_collator=collate, callbacks=[callback])
    made.beta, made.loss_type = one["beta"], one["loss_type"]
    return made


def _by_trl(
    arguments: Any, model: Any, one: dict[str, Any], rows: list[dict[str, list[int]]], callback: TrainerCallback
) -> Any:
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    class InOrderOfFile(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

        def _get_train_sampler(self, *_: Any) -> SequentialSampler:
            return SequentialSampler(self.train_dataset)

    known = inspect.signature(type(arguments)).parameters
    same = {name: getattr(arguments, name) for name in known if name in _SAME}
    config = DPOConfig(
        **same, beta=one["beta"], loss_type=[one["loss_type"]], gradient_checkpointing=False, report_to="none"
    )
    return InOrderOfFile(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(one["tokenizer"]),
        callbacks=[callback],
    )


_SAME = (
    *("output_dir", "per_device_train_batch_size", "max_steps", "learning_rate", "lr_scheduler_type", "warmup_steps"),
    *("weight_decay", "max_grad_norm", "optim", "bf16", "use_cpu", "seed", "save_strategy", "logging_strategy"),
    *("disable_tqdm", "dataloader_pin_memory"),
)
"""Arguments of the Trainer that the DPOTrainer is given, too."""


@torch.no_grad()
def preference_accuracy(model: Any, pairs: list[dict[str, list[int]]], at_once: int = EVALUATION_ROWS) -> float:
    """Returns the share of pairs whose rejected answer has the higher reward, some pairs at once."""
    model.eval()
    device = next(model.parameters()).device
    wrong = 0
    for first in range(0, len(pairs), max(1, at_once // 2)):
        batch = {name: value.to(device) for name, value in collate(pairs[first : first + max(1, at_once // 2)]).items()}
        on_gpu = device.type == "cuda"
        with torch.autocast(device.type, torch.bfloat16) if on_gpu else nullcontext():
            chosen, rejected = log_ratios(model, batch)
        wrong += int((chosen <= rejected).sum())
    return wrong / len(pairs)


if __name__ == "__main__":
    sys.exit(run_script(main))

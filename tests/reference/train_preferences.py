"""Losses, gradients and trajectories of preferences by the real TRL; usage: train_preferences.py JOB.json.

The job is an object:

- `base`, `adapter`, `tokenizer`: folders; the reference is the base without the adapter.
- `pairs`: of each `prompt_ids`, `chosen_ids` and `rejected_ids`; a batch has all of them.
- `answers`: for kto, likewise of each `prompt_ids`, `completion_ids`, `KL_completion_ids` and `label`.
- `losses`: of each the attributes of a trainer; `trainer` is dpo, cpo, orpo or kto.
- `steps`, `learning_rate`: of a trajectory of AdamW, of the first loss.
- `out`: gets `loss` and `N/NAME`, gradients of loss N in each weight of the adapter, and `trajectory`, the losses of
  the steps.
"""

import json
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer


class Recording(DPOTrainer):
    """Takes tokens as they are, and keeps the loss of every step, which the trainer's own log rounds."""

    seen: list[float]

    def _prepare_dataset(self, dataset, *_):
        return dataset

    def compute_loss(self, *arguments, **named):
        """Returns TRL's loss."""
        loss = super().compute_loss(*arguments, **named)
        self.seen.append(float(loss.detach()))
        return loss


class AsTokens(KTOTrainer):
    """Takes tokens as they are."""

    def _prepare_dataset(self, dataset, *_):
        return dataset


def main(path: str) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(2)
    job = json.loads(Path(path).read_text())
    found: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as folder:
        trainers = {"pairs": make_trainer(job, folder), "answers": make_trainer(job, folder, alone=True)}
        batches = {kind: next(iter(trainer.get_train_dataloader())) for kind, trainer in trainers.items()}
        losses = []
        for number, one in enumerate(job["losses"]):
            kind = "answers" if one["trainer"] == "kto" else "pairs"
            trainer, batch = trainers[kind], batches[kind]
            trainer.model.zero_grad()
            loss = loss_of(trainer, batch, dict(one))
            loss.backward()
            losses.append(loss.item())
            found |= {f"{number}/{name}": gradient for name, gradient in gradients(trainer.model)}
        found["loss"] = np.array(losses)
        trainer = make_trainer(job, folder)
        vars(trainer).update({name: value for name, value in job["losses"][0].items() if name != "trainer"})
        trainer.train()
        found["trajectory"] = np.array(trainer.seen)
    np.savez(job["out"], **found)


def make_trainer(job: dict, folder: str, *, alone: bool = False) -> Recording | AsTokens:
    data = job["answers" if alone else "pairs"]
    config = (KTOConfig if alone else DPOConfig)(
        folder,
        per_device_train_batch_size=len(data),
        max_steps=job["steps"],
        learning_rate=job["learning_rate"],
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    lora = LoraConfig.from_pretrained(job["adapter"])
    lora.inference_mode = False
    trainer = (AsTokens if alone else Recording)(
        model=AutoModelForCausalLM.from_pretrained(job["base"], dtype=torch.float32),
        args=config,
        train_dataset=Dataset.from_list(data),
        processing_class=AutoTokenizer.from_pretrained(job["tokenizer"]),
        peft_config=lora,
    )
    set_peft_model_state_dict(trainer.model, load_file(Path(job["adapter"]) / "adapter_model.safetensors"))
    trainer.seen = []
    return trainer


def loss_of(trainer: Recording, batch: dict, one: dict) -> torch.Tensor:
    kind = one.pop("trainer")
    if kind in ("dpo", "kto"):
        vars(trainer).update(one)
        return trainer.compute_loss(trainer.model, batch)
    logits = trainer.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    chosen, rejected = CPOTrainer.get_batch_logps(logits, labels, average_log_prob=True).chunk(2)
    own = SimpleNamespace(accelerator=SimpleNamespace(device="cpu"), alpha=0.0, **one)
    if kind == "cpo":
        return CPOTrainer.cpo_loss(own, chosen, rejected)[0].mean()
    half = len(labels) // 2
    nll = torch.nn.functional.cross_entropy(logits[:half, :-1].flatten(0, 1), labels[:half, 1:].flatten())
    return nll - ORPOTrainer.odds_ratio_loss(own, chosen, rejected)[0].mean()


def gradients(model: torch.nn.Module) -> list[tuple[str, np.ndarray]]:
    named = [(name.replace(".default", ""), one.grad) for name, one in model.named_parameters() if one.grad is not None]
    return [(name, gradient.numpy().copy()) for name, gradient in named]


main(sys.argv[1])

"""Trials in a few characters: the hyper-parameters in which those of a task differ, such as ``r16 lr3e-4 b2``."""

from collections.abc import Mapping, Sequence
from typing import Any

SHORT = {
    "loss_type": "",
    "beta": "β",
    "label_smoothing": "smooth",
    "simpo_gamma": "γ",
    "sft_weight": "sft",
    "desirable_weight": "good",
    "undesirable_weight": "bad",
    "lora_rank": "r",
    "lora_alpha": "a",
    "use_rslora": "rslora ",
    "lora_dropout": "drop",
    "target_modules": "",
    "target_parameters": "",
    "learning_rate": "lr",
    "lr_scheduler_type": "",
    "warmup_ratio": "warm",
    "decay_ratio": "decay",
    "min_lr_ratio": "floor",
    "weight_decay": "wd",
    "adam_beta1": "beta1 ",
    "adam_beta2": "beta2 ",
    "adam_epsilon": "eps",
    "max_grad_norm": "clip",
    "batch_size": "b",
    "gradient_accumulation_steps": "acc",
    "num_train_epochs": "ep",
    "train_samples": "n",
    "seed": "s",
}
"""Field of a configuration -> what stands before its value."""


def labels(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns a label for each configuration of a task, of the fields in which they differ; empty where none does.

    Args:
        configs: Values by field, `lora_alpha` and `seed` never null, as a run's journal has them: without those
            that a trial does not read.
    """
    varied = [name for name in SHORT if len({repr(one[name]) for one in configs if name in one}) > 1]
    if "lora_alpha" in varied and len({one["lora_alpha"] / one["lora_rank"] for one in configs}) == 1:
        varied.remove("lora_alpha")
    return [" ".join(SHORT[name] + _short(one[name]) for name in varied if name in one) for one in configs]


def _short(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, list | tuple):
        return ",".join(name.removesuffix("_proj") for name in value)
    return "all" if value == "all-linear" else str(value)


def _number(value: float) -> str:
    """The shorter of 0.05 and 5e-2."""
    mantissa, exponent = f"{value:.3e}".split("e")
    power = f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return min(f"{value:.4g}", power, key=len)

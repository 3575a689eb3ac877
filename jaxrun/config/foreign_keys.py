"""Names that other tools give to what runs of any kind are told, and what stands for them here.

From transformers.TrainingArguments, TRL, PEFT, LLaMA-Factory, axolotl and unsloth. A config's section takes the table
whose keys it has, and adds what is its own.
"""

from collections.abc import Mapping

from jaxrun.config.config_keys import Ours

SAMPLES = "it counts samples: steps × rows of a step"

TRAINING: Mapping[str, str | Ours] = {
    "lr": "learning_rate",
    "scheduler": "lr_scheduler_type",
    "lr_scheduler": "lr_scheduler_type",
    "min_lr": Ours("min_lr_ratio", "it is a share of the peak"),
    "min_lr_rate": "min_lr_ratio",
    "cosine_min_lr_ratio": "min_lr_ratio",
    "lr_scheduler_kwargs": Ours("min_lr_ratio", "each number of a schedule is a key of its own"),
    "per_device_train_batch_size": "batch_size",
    "per_gpu_train_batch_size": "batch_size",
    "micro_batch_size": "batch_size",
    "train_batch_size": "batch_size",
    "epochs": "num_train_epochs",
    "num_epochs": "num_train_epochs",
    "max_steps": Ours("train_samples", SAMPLES),
    "num_train_steps": Ours("train_samples", SAMPLES),
    "warmup_steps": Ours("warmup_ratio", "it is a share: steps of warm-up / all steps"),
    "num_warmup_steps": Ours("warmup_ratio", "it is a share: steps of warm-up / all steps"),
    "warmup": Ours("warmup_ratio", "it is a share of the steps"),
    "beta1": "adam_beta1",
    "beta2": "adam_beta2",
    "adam_eps": "adam_epsilon",
    "gradient_clipping": "max_grad_norm",
    "grad_clip": "max_grad_norm",
    "optim": Ours(note="the optimizer is always AdamW"),
    "optimizer": Ours(note="the optimizer is always AdamW"),
    "label_smoothing_factor": Ours(note="not supported"),
    "neftune_noise_alpha": Ours(note="not supported"),
}
"""Of a section that says how to train."""

RUN: Mapping[str, str | Ours] = {
    "run_dir": "output_dir",
    "output": "output_dir",
    "run_name": Ours("output_dir", "a run is known by its folder"),
    "random_seed": "seed",
    "random_state": "seed",
    "data_seed": "seed",
    "log_with": "report_to",
    "logger": "report_to",
    "wandb_project": Ours("report_to", "it takes any of tensorboard, wandb and trackio"),
    "use_wandb": Ours("report_to", "it takes any of tensorboard, wandb and trackio"),
    "logging_steps": Ours(note="the losses of every step are in metrics.jsonl"),
    "logging_dir": Ours(note="logs are written to output_dir"),
    "overwrite_output_dir": Ours(note="overwrite=true on the command line discards the run that is in output_dir"),
    "resume_from_checkpoint": Ours(note="the same command resumes from the last checkpoint"),
    "save_total_limit": Ours(note="the last checkpoint and the best are what is kept"),
    "do_train": Ours(note="not needed"),
    "do_eval": Ours(note="not needed"),
    "push_to_hub": Ours(note="not supported"),
    "hub_model_id": Ours(note="not supported"),
    "dataloader_num_workers": Ours(note="not needed"),
    "deepspeed": Ours(note="not supported"),
    "fsdp": Ours(note="not supported"),
}
"""Of a whole run."""

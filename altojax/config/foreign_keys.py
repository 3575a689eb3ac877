"""Names that other tools give to what a tuning run is told, and what stands for them here."""

from collections.abc import Mapping

from jaxrun.config import foreign_keys
from jaxrun.config.config_keys import Ours

_LORA_ONLY = Ours(note="only LoRA adapters are trained, always")
_PATTERN = Ours("target_modules", "a regular expression over whole module paths chooses layers, too")
_SHARDED = Ours("mesh", "all devices are used by default; a base that is large for one is sharded")
_BEST = Ours(note="the checkpoint of the lowest validation loss is what is kept of a trial")

TRIAL: Mapping[str, str | Ours] = {
    **foreign_keys.TRAINING,
    "max_steps": Ours("train_samples", "it counts samples: steps × batch_size × gradient_accumulation_steps"),
    "num_train_steps": Ours("train_samples", "it counts samples: steps × batch_size × gradient_accumulation_steps"),
    "gradient_accumulation": "gradient_accumulation_steps",
    "total_batch_size": Ours("batch_size", "a step takes batch_size × gradient_accumulation_steps"),
    "r": "lora_rank",
    "rank": "lora_rank",
    "lora_r": "lora_rank",
    "lora_dim": "lora_rank",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "peft_use_rslora": "use_rslora",
    "lora_target": "target_modules",
    "lora_target_modules": "target_modules",
    "lora_target_parameters": "target_parameters",
    "lora_target_linear": Ours("target_modules", "all-linear is its default"),
    "layers_to_transform": _PATTERN,
    "peft_layers_to_transform": _PATTERN,
    "layers_pattern": _PATTERN,
    "peft_layers_pattern": _PATTERN,
    "exclude_modules": _PATTERN,
    "use_dora": Ours(note="DoRA is not supported"),
    "lora_bias": Ours(note="adapters have no bias"),
    "bias": Ours(note="biases are not trained"),
    "modules_to_save": Ours(note="not supported: only adapters are trained"),
    "init_lora_weights": Ours(note="A is random and B zero, as PEFT does by default"),
    "rank_pattern": Ours(note="not supported: a trial has one rank"),
    "alpha_pattern": Ours(note="not supported: a trial has one alpha"),
    "loraplus_lr_ratio": Ours(note="not supported"),
    "pref_beta": "beta",
    "pref_loss": "loss_type",
    "pref_ftx": "sft_weight",
    "rpo_alpha": "sft_weight",
    "loss_weights": Ours("sft_weight", "a trial has one loss of pairs, to which sft_weight adds cross-entropy"),
    "rl_beta": "beta",
    "dpo_beta": "beta",
    "simpo_beta": "beta",
    "orpo_alpha": "beta",
    "kto_beta": "beta",
    **dict.fromkeys(("kto_chosen_weight", "kto_desirable_weight", "rl_desirable_weight"), "desirable_weight"),
    **dict.fromkeys(("kto_rejected_weight", "kto_undesirable_weight", "rl_undesirable_weight"), "undesirable_weight"),
    "dpo_label_smoothing": "label_smoothing",
    "gamma_beta_ratio": Ours("simpo_gamma", "it is the ratio × beta"),
    "cpo_alpha": "sft_weight",
    "reference_free": Ours("loss_type", "simpo and orpo have no reference"),
    "f_divergence_type": Ours(note="the divergence is reverse_kl, always"),
    "f_alpha_divergence_coef": Ours(note="the divergence is reverse_kl, always"),
    "use_weighting": Ours(note="not supported: pairs weigh alike"),
    "ld_alpha": Ours(note="not supported: all tokens of an answer weigh alike"),
    "disable_dropout": Ours("lora_dropout", "it is the only dropout"),
    "finetuning_type": _LORA_ONLY,
    "adapter": _LORA_ONLY,
    "use_lora": _LORA_ONLY,
    "use_peft": _LORA_ONLY,
    "peft_type": _LORA_ONLY,
    "task_type": _LORA_ONLY,
    "full_finetuning": _LORA_ONLY,
}
"""Of a configuration."""

SEARCH: Mapping[str, str | Ours] = {**TRIAL, "n_trials": "trials", "num_samples": "trials"}
"""Of a search space."""

LOSSES = {"dpo": "sigmoid", "cdpo": "sigmoid", "slic": "hinge", "kto_pair": "kto"}
"""Losses of preference pairs by other names."""

OBJECTIVES = dict.fromkeys(("orpo", "simpo", "ipo", "kto", "preference"), "dpo")
"""Objectives by other names; their losses are of `search.loss_type`."""

SCHEDULES = {"wsd": "warmup_stable_decay", "constant_with_warmup": "constant"}
"""Schedules by other names; with warmup_ratio every one warms up."""

TASK: Mapping[str, str | Ours] = {
    "adapter_name_or_path": "init_adapter",
    "lora_model_dir": "init_adapter",
    "resume_adapter_file": "init_adapter",
}
"""Of a task."""

RUN: Mapping[str, str | Ours] = {
    **foreign_keys.RUN,
    "eval_steps": Ours("eval_samples", "it counts samples, below 1 a share of the schedule"),
    "evals_per_epoch": Ours("eval_samples", "it counts samples, below 1 a share of the schedule"),
    "save_steps": Ours("checkpoint_samples", "it counts samples of all trials, below 1 a share of the run"),
    "saves_per_epoch": Ours("checkpoint_samples", "it counts samples of all trials, below 1 a share of the run"),
    "eval_strategy": Ours("eval_samples", "every trial is evaluated"),
    "evaluation_strategy": Ours("eval_samples", "every trial is evaluated"),
    "save_strategy": Ours("checkpoint_samples", "every run is saved"),
    "base_model": "model.model_name_or_path",
    "early_stopping": "early_exit",
    "early_stopping_patience": "early_exit.stalled.patience",
    "load_best_model_at_end": _BEST,
    "metric_for_best_model": _BEST,
    "warmup": Ours("search.warmup_ratio", "it is a share of the steps"),
    "datasets": "tasks",
    "max_concurrent_trials": "slots",
    "deepspeed": _SHARDED,
    "fsdp": _SHARDED,
    "fsdp_config": _SHARDED,
    "device_map": _SHARDED,
    "num_gpus": _SHARDED,
    "tensor_parallel_size": "mesh.tensor",
    "stage": Ours("objective", "it is sft or dpo"),
    "rl": Ours("objective", "it is sft or dpo"),
    **dict.fromkeys(
        ("ref_model", "reference_model", "ref_adapter_name", "ref_model_adapters", "force_use_ref_model"),
        Ours("tasks.0.init_adapter", "the reference is the base, or with it the adapter that trials start from"),
    ),
    "sync_ref_model": Ours(note="the reference stays as it is, always"),
    "max_prompt_length": Ours("tasks.0.data.max_length", "it is of prompt and answer, which are cut at the end"),
    "max_completion_length": Ours("tasks.0.data.max_length", "it is of prompt and answer, which are cut at the end"),
    "padding_free": Ours(note="not needed"),
    "generate_during_eval": Ours(note="not supported; altojax generate writes answers of a run's adapters"),
    "precompute_ref_log_probs": Ours(
        note="log-probabilities of the reference are computed once for all trials, always"
    ),
}
"""Of a whole run."""

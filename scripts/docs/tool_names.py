"""Which tool uses which name, for the pages of keys: names that are keys here too, and those that stand for one."""

from collections.abc import Mapping

_TRAINER = """
output_dir run_name seed data_seed report_to learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_ratio
warmup_steps weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm per_device_train_batch_size
gradient_accumulation_steps num_train_epochs max_steps eval_steps eval_strategy save_steps save_strategy bf16 fp16
gradient_checkpointing gradient_checkpointing_kwargs deepspeed fsdp fsdp_config
"""

NAMES: Mapping[str, str] = {
    "transformers": f"""
        {_TRAINER} dtype torch_dtype device_map trust_remote_code pretrained_model_name_or_path evaluation_strategy
        model_name_or_path dataset_name dataset_config_name train_file validation_file test_file
        max_train_samples max_eval_samples max_predict_samples
    """,
    "TRL": """
        model_name_or_path dtype trust_remote_code lora_r lora_alpha lora_dropout lora_target_modules
        lora_target_parameters use_rslora max_length max_seq_length packing completion_only_loss assistant_only_loss
        chat_template_path dataset_text_field train_dataset eval_dataset dataset_name dataset_config dataset_train_split
        dataset_test_split datasets path data_files test_split_size loss_type beta label_smoothing
        loss_weights simpo_gamma ref_model precompute_ref_log_probs
    """,
    "PEFT": """
        r lora_alpha lora_dropout target_modules target_parameters use_rslora exclude_modules layers_to_transform
        layers_pattern
    """,
    "LLaMA-Factory": f"""
        {_TRAINER} model_name_or_path trust_remote_code lora_rank lora_alpha lora_dropout lora_target use_rslora
        cutoff_len template dataset eval_dataset val_size max_samples packing neat_packing train_on_prompt
        interleave_probs file_name hf_hub_url subset messages query response history tools role_tag content_tag stage
        pref_beta pref_loss pref_ftx dpo_label_smoothing simpo_gamma chosen rejected
    """,
    "axolotl": """
        base_model lora_r lora_alpha lora_dropout lora_target_modules lora_target_linear
        lora_target_parameters peft_use_rslora peft_layers_to_transform
        peft_layers_pattern output_dir seed learning_rate lr_scheduler lr_scheduler_kwargs
        cosine_min_lr_ratio warmup_ratio warmup_steps weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm
        micro_batch_size gradient_accumulation_steps num_epochs max_steps eval_steps evals_per_epoch eval_strategy
        evaluation_strategy save_steps saves_per_epoch save_strategy early_stopping_patience bf16 fp16
        gradient_checkpointing gradient_checkpointing_kwargs deepspeed fsdp fsdp_config device_map use_wandb
        wandb_project trust_remote_code datasets test_datasets path data_files type revision weight roles val_set_size
        sequence_len sample_packing train_on_inputs chat_template chat_template_jinja field_messages field_system
        field_tools message_property_mappings message_field_role message_field_content tensor_parallel_size
    """,
    "unsloth": """
        model_name dtype max_seq_length trust_remote_code r lora_alpha lora_dropout target_modules layers_to_transform
        layers_pattern use_rslora random_state use_gradient_checkpointing
    """,
    "Optuna": "n_trials",
    "Ray Tune": "num_samples max_concurrent_trials",
}
"""Tool -> names.

Those of transformers are of TrainingArguments, which TRL has, of `from_pretrained` and of run_clm.py; those of
LLaMA-Factory of its arguments and of dataset_info.json. Read in transformers 5.23, TRL 1.16, PEFT 0.21,
LLaMA-Factory 0.9.5, axolotl 0.21 and Optuna 5.0. Names that these dropped stay, for the configs that have them:
warmup_ratio and evaluation_strategy of transformers, max_seq_length of TRL, fsdp of axolotl.
"""

TOOLS: Mapping[str, tuple[str, ...]] = {
    name: tuple(tool for tool, names in NAMES.items() if name in names.split())
    for names in NAMES.values()
    for name in names.split()
}
"""Name -> tools that use it."""

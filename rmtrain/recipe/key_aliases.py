"""Names of recipe keys in other trainers (TRL, axolotl, LLaMA-Factory, OpenRLHF, ...). Only error messages use them."""

from rmtrain.recipe.section import KeyPath

_NAMES = {
    "run.name": "run_name experiment_name exp_name",
    "run.output_dir": "out_dir save_dir save_path output_path",
    "run.seed": "random_seed data_seed",
    "data.train": "dataset datasets dataset_name dataset_path dataset_mixer train_dataset train_data train_file train_files",
    "data.eval": "eval_dataset eval_data eval_file validation validation_file test_dataset val_dataset dataset_eval",
    "data.chat_template": "template prompt_template chat_template_path",
    "data.chat_template_kwargs": "template_kwargs apply_chat_template_kwargs chat_template_args enable_thinking",
    "data.max_length": "max_token_length max_seq_length max_seq_len max_sequence_length sequence_len seq_len cutoff_len max_len",
    "data.max_prompt_length": "max_prompt_token_length max_prompt_token_lenth prompt_max_len",
    "data.overlong": "truncation truncation_side truncation_mode",
    "data.train.0.path": "data_path",
    "data.train.0.name": "dataset_config dataset_config_name subset config_name",
    "data.train.0.split": "dataset_train_split dataset_split train_split",
    "data.eval.0.split": "dataset_eval_split dataset_test_split eval_split test_split",
    "data.train.0.limit": "max_samples max_train_samples max_examples",
    "data.train.0.streaming": "stream use_streaming",
    "data.train.0.filter": "filters filter_by where conditions dataset_filter_fn",
    "data.train.0.filter.0.equals": "is eq equal",
    "data.train.0.filter.0.is_not": "not_equal not_equals ne neq isnt",
    "data.train.0.filter.0.one_of": "isin is_in any_of",
    "data.train.0.filter.0.at_least": "gte ge min minimum greater_equal",
    "data.train.0.filter.0.at_most": "lte le max maximum less_equal",
    "data.train.0.fraction": "weight weights sample_ratio sampling_ratio subsample proportion dataset_weight frac",
    "data.train.0.cap": "max_per_prompt max_per_group max_pairs_per_prompt",
    "data.train.0.dedup": "deduplicate deduplication drop_duplicates remove_duplicates",
    "data.train.0.prepare": "map_fn process_fn preprocess_fn preprocessing_fn transform transform_fn",
    "data.train.0.holdout": "test_size val_size val_set_size eval_size held_out validation_split",
    "data.train.0.format": "dataset_type ds_type data_type dataset_format",
    "data.train.0.messages.decode_json": "json json_cells parse_json",
    "data.train.0.label": "label_column label_key preference_column winner_column",
    "data.train.0.responses": "completions candidates responses_column",
    "data.train.0.score": "score_column score_key ranking_column",
    "data.train.0.policy": "pairing pairing_policy pair_strategy",
    "data.train.0.chosen": "chosen_column chosen_key column_chosen",
    "data.train.0.rejected": "rejected_column rejected_key column_rejected",
    "data.train.0.prompt": "prompt_column prompt_key input_key column_prompt",
    "data.train.0.tools": "tools_column tools_key column_tools",
    "data.train.0.margin": "margin_column margin_key",
    "model.path": "model_name_or_path model_name model_id base_model model_path pretrain pretrained model.name model.id",
    "model.revision": "model_revision base_model_revision",
    "model.dtype": "torch_dtype model_dtype",
    "model.quantization": "load_in_4bit load_in_8bit use_bnb quantize qlora",
    "model.dropout": "disable_dropout attention_dropout hidden_dropout",
    "model.gradient_checkpointing": "use_gradient_checkpointing activation_checkpointing gradient_checkpointing_enable",
    "model.tokenizer": "tokenizer_name_or_path tokenizer_path tokenizer_name",
    "model.scratch.architecture": "model_type",
    "model.scratch.layers": "num_hidden_layers num_layers n_layers n_layer",
    "model.scratch.heads": "num_attention_heads num_heads n_heads n_head",
    "model.scratch.key_value_heads": "num_key_value_heads kv_heads n_kv_heads",
    "model.scratch.max_positions": "max_position_embeddings n_positions context_length",
    "lora": "peft peft_config use_peft use_lora adapter lora_config",
    "lora.rank": "lora_r lora_rank r lora_dim",
    "lora.alpha": "lora_alpha",
    "lora.dropout": "lora_dropout",
    "lora.targets": "lora_target_modules lora_target target_modules",
    "lora.rslora": "use_rslora",
    "lora.dora": "use_dora lora_use_dora",
    "batching.max_tokens": "per_device_eval_batch_size eval_batch_size micro_batch_size micro_train_batch_size "
    "gradient_accumulation_steps tokens_per_batch max_tokens_per_batch",
    "objective.center_rewards": "center_rewards_coefficient",
    "objective.type": "loss_type",
    "optimizer": "optim optimizer_config",
    "optimizer.name": "optim_name optimizer.type",
    "optimizer.lr": "learning_rate learning_rates base_lr max_lr peak_lr",
    "optimizer.schedule": "lr_scheduler_type lr_scheduler scheduler lr_schedule decay",
    "optimizer.warmup": "warmup_ratio warmup_steps lr_warmup_ratio lr_warmup_steps",
    "optimizer.betas": "adam_beta1 adam_beta2 adam_betas beta1 beta2",
    "optimizer.eps": "adam_epsilon epsilon",
    "optimizer.weight_decay": "wd l2",
    "optimizer.clip": "max_grad_norm max_norm gradient_clipping grad_clip clip_grad_norm gradient_clip_val",
    "training.epochs": "num_train_epochs num_epochs n_epochs max_epochs",
    "training.max_steps": "max_train_steps num_steps total_steps",
    "training.batch_size": "per_device_train_batch_size train_batch_size global_batch_size per_device_batch_size "
    "effective_batch_size",
    "training.precision": "bf16 fp16 mixed_precision tf32 autocast",
    "training.deterministic": "full_determinism use_deterministic_algorithms cudnn_deterministic",
    "checkpoints": "checkpointing checkpoint checkpointer",
    "checkpoints.every": "save_steps save_every save_interval save_freq save_strategy checkpointing_steps checkpoint_every saves_per_epoch",
    "checkpoints.minutes": "save_minutes save_interval_minutes save_every_minutes",
    "checkpoints.keep": "save_total_limit keep_last_n keep_last max_checkpoints max_ckpt_num checkpoints_total_limit",
    "checkpoints.best": "metric_for_best_model best_metric greater_is_better monitor",
    "checkpoints.load_best_at_end": "load_best_model_at_end load_best early_stopping_load_best",
    "evaluation.every": "eval_steps eval_strategy evaluation_strategy eval_every eval_interval evals_per_epoch",
    "evaluation.gates": "fail_under thresholds",
    "tracking.log_every": "logging_steps log_steps log_interval logging_strategy",
    "tracking.to": "report_to log_with tracker trackers loggers wandb tensorboard mlflow trackio",
    "tracking.project": "wandb_project project_name tracker_project_name",
    "hub.push": "push_to_hub",
    "hub.id": "hub_model_id hub.name hub.repo_id repo_id",
    "hub.public": "hub_private_repo private hub.private",
}


def _key_path(text: str) -> KeyPath:
    return tuple(int(part) if part.isdigit() else part for part in text.split("."))


ALIASES: dict[str, KeyPath] = {alias: _key_path(ours) for ours, aliases in _NAMES.items() for alias in aliases.split()}
"""The key path for each name in another trainer; `section.name` where the name has this meaning in that section only."""
_RESUME = "the same command resumes from the latest checkpoint; --resume PATH selects another one"
_FRESH = "--fresh renames an existing run directory and starts from scratch"
OPTIONS = dict.fromkeys(("resume_from_checkpoint", "resume", "auto_resume", "resume_ckpt"), _RESUME) | dict.fromkeys(
    ("overwrite_output_dir", "overwrite"), _FRESH
)
"""Names in other trainers for what is an option of `rmtrain train` and not a key of a recipe, with the advice for them."""

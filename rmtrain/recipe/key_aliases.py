"""Names in other trainers (TRL, axolotl, LLaMA-Factory, OpenRLHF, ...): of keys, and of values that mean the same here.

Only error messages use the names of keys. A name whose meaning differs is not an alias: `HINTS` says what the difference is.
"""

from typing import Any

from pydantic import BeforeValidator

from rmtrain.recipe.section import KeyPath

_NAMES = {
    "run.name": "run_name experiment_name exp_name wandb_run_name wandb_name swanlab_run_name",
    "run.output_dir": "out_dir save_dir save_path output_path",
    "run.seed": "random_seed data_seed",
    "data.train": "dataset datasets dataset_name dataset_path dataset_mixer train_dataset train_data train_file train_files",
    "data.eval": "eval_dataset eval_data eval_file validation validation_file test_dataset val_dataset dataset_eval",
    "data.chat_template": "template prompt_template chat_template_path tokenizer_chat_template",
    "data.chat_template_kwargs": "template_kwargs apply_chat_template_kwargs chat_template_args enable_thinking",
    "data.max_length": "max_token_length max_seq_length max_seq_len max_sequence_length sequence_len seq_len cutoff_len max_len",
    "data.max_prompt_length": "max_prompt_token_length max_prompt_token_lenth prompt_max_len",
    "data.overlong": "truncation truncation_side truncation_mode",
    "data.processes": "dataset_num_proc preprocessing_num_workers num_proc dataset_processes",
    "data.cache_dir": "dataset_prepared_path",
    "data.train.0.path": "data_path",
    "data.train.0.name": "dataset_config dataset_config_name subset config_name",
    "data.train.0.split": "dataset_train_split dataset_split train_split",
    "data.eval.0.split": "dataset_eval_split dataset_test_split eval_split test_split",
    "data.train.0.limit": "max_samples max_train_samples max_examples",
    "data.train.0.streaming": "stream use_streaming dataset_streaming",
    "data.train.0.filter": "filters filter_by where conditions dataset_filter_fn",
    "data.train.0.filter.0.equals": "is eq equal",
    "data.train.0.filter.0.is_not": "not_equal not_equals ne neq isnt",
    "data.train.0.filter.0.one_of": "isin is_in any_of",
    "data.train.0.filter.0.at_least": "gte ge min minimum greater_equal",
    "data.train.0.filter.0.at_most": "lte le max maximum less_equal",
    "data.train.0.fraction": "sample_ratio sampling_ratio subsample proportion frac",
    "data.train.0.repeat": "repeats upsample upsampling oversample num_repeats",
    "data.train.0.cap": "max_per_prompt max_per_group max_pairs_per_prompt",
    "data.train.0.dedup": "deduplicate deduplication drop_duplicates remove_duplicates",
    "data.train.0.prepare": "map_fn process_fn preprocess_fn preprocessing_fn transform transform_fn",
    "data.train.0.holdout": "test_size test_split_size val_size val_set_size eval_size held_out validation_split",
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
    "model.quantization": "use_bnb quantize",
    "model.dropout": "attention_dropout hidden_dropout",
    "model.gradient_checkpointing": "use_gradient_checkpointing activation_checkpointing gradient_checkpointing_enable",
    "model.tokenizer": "tokenizer_name_or_path tokenizer_path tokenizer_name",
    "model.scratch.architecture": "model_type",
    "model.scratch.layers": "num_hidden_layers num_layers n_layers n_layer",
    "model.scratch.heads": "num_attention_heads num_heads n_heads n_head",
    "model.scratch.key_value_heads": "num_key_value_heads kv_heads n_kv_heads",
    "model.scratch.max_positions": "max_position_embeddings n_positions context_length",
    "lora": "peft peft_config use_peft use_lora adapter lora_config finetuning_type",
    "lora.rank": "lora_r lora_rank r lora_dim",
    "lora.alpha": "lora_alpha",
    "lora.dropout": "lora_dropout",
    "lora.targets": "lora_target_modules lora_target target_modules lora_target_parameters target_parameters",
    "lora.rslora": "use_rslora",
    "lora.dora": "use_dora lora_use_dora",
    "batching.max_tokens": "tokens_per_batch max_tokens_per_batch",
    "objective.center_rewards": "center_rewards_coefficient",
    "objective.type": "loss_type",
    "objective.router_balance": "router_aux_loss_coef aux_loss_coef moe_aux_loss_coef moe_aux_loss_coeff",
    "objective.label_smoothing": "label_smoothing_factor",
    "optimizer": "optimizer_config",
    "optimizer.name": "optim optim_name optimizer.type",
    "optimizer.lr": "learning_rate learning_rates base_lr max_lr peak_lr",
    "optimizer.head_lr": "head_learning_rate score_lr score_learning_rate value_head_lr classifier_lr lr_head",
    "optimizer.min_lr": "lr_end end_lr lr_min min_learning_rate final_lr",
    "optimizer.schedule": "lr_scheduler_type lr_scheduler scheduler lr_schedule",
    "optimizer.warmup": "warmup_ratio lr_warmup_ratio warmup_steps lr_warmup_steps num_warmup_steps",
    "optimizer.decay": "num_decay_steps decay_steps lr_decay_steps decay_ratio",
    "optimizer.cycles": "num_cycles lr_scheduler_num_cycles",
    "optimizer.betas": "adam_betas",
    "optimizer.eps": "adam_epsilon epsilon",
    "optimizer.weight_decay": "wd l2",
    "optimizer.clip": "max_grad_norm max_norm gradient_clipping grad_clip clip_grad_norm gradient_clip_val",
    "training.epochs": "num_train_epochs num_epochs n_epochs max_epochs",
    "training.max_steps": "max_train_steps num_steps total_steps",
    "training.batch_size": "global_batch_size effective_batch_size",
    "training.precision": "mixed_precision",
    "training.deterministic": "full_determinism use_deterministic_algorithms cudnn_deterministic",
    "checkpoints": "checkpointing checkpoint checkpointer",
    "checkpoints.every": "save_steps save_every save_interval save_freq checkpointing_steps checkpoint_every",
    "checkpoints.minutes": "save_minutes save_interval_minutes save_every_minutes",
    "checkpoints.keep": "save_total_limit keep_last_n keep_last max_checkpoints max_ckpt_num checkpoints_total_limit",
    "checkpoints.best": "metric_for_best_model best_metric monitor",
    "checkpoints.load_best_at_end": "load_best_model_at_end load_best early_stopping_load_best",
    "evaluation.every": "eval_steps eval_every eval_interval",
    "evaluation.on_start": "eval_on_start at_start eval_at_start evaluate_on_start",
    "evaluation.early_stopping": "early_stop early_stopper",
    "evaluation.early_stopping.patience": "early_stopping_patience early_stopping_steps",
    "evaluation.gates": "fail_under thresholds",
    "evaluation.benchmarks": "eval_benchmarks benchmark_names",
    "tracking.log_every": "logging_steps log_steps log_interval",
    "tracking.to": (
        "report_to log_with tracker trackers loggers wandb tensorboard mlflow trackio swanlab use_wandb use_tensorboard use_trackio "
        "use_swanlab"
    ),
    "tracking.project": "wandb_project swanlab_project project_name tracker_project_name",
    "hub.push": "push_to_hub",
    "hub.id": "hub_model_id hub.name hub.repo_id repo_id",
}


def _key_path(text: str) -> KeyPath:
    return tuple(int(part) if part.isdigit() else part for part in text.split("."))


ALIASES: dict[str, KeyPath] = {alias: _key_path(ours) for ours, aliases in _NAMES.items() for alias in aliases.split()}
"""The key path for each name in another trainer; `section.name` where the name has this meaning in that section only."""
_ADVICE = {
    "training.batch_size counts the comparisons of a step over all processes: per device × processes × accumulation": (
        "per_device_train_batch_size per_device_batch_size per_gpu_train_batch_size train_batch_size batch_size_per_device"
    ),
    "training.batch_size is the whole step; batching.max_tokens, in tokens, sets the size of its micro-batches": (
        "gradient_accumulation_steps micro_batch_size micro_train_batch_size per_device_eval_batch_size eval_batch_size "
        "auto_find_batch_size eval_accumulation_steps accumulate_grad_batches"
    ),
    "optimizer.min_lr is a learning rate, not a share of one: multiply by optimizer.lr": (
        "min_lr_rate min_lr_ratio cosine_min_lr_ratio lr_min_ratio"
    ),
    "optimizer.min_lr, decay and cycles are what a schedule needs in addition": "lr_scheduler_kwargs scheduler_kwargs",
    "repeat uses the rows of a source several times, fraction keeps a share of its prompts, and weight names a column of weights": (
        "weights dataset_weight sample_weight dataset_probs interleave_probs mix_strategy"
    ),
    "sequences are always packed, without padding; batching.layout selects how": (
        "packing sample_packing eval_packing packing_samples neat_packing padding_free group_by_length pad_to_multiple_of "
        "remove_padding use_remove_padding pad_to_max_length pad_to_sequence_len length_column_name train_sampling_strategy "
        "multipack_real_batches packing_strategy"
    ),
    "attention follows from batching.layout; remove this key": (
        "attn_implementation flash_attention flash_attn use_flash_attention use_flash_attention_2 sdp_attention "
        "xformers_attention"
    ),
    "a reward model has one output; remove this key": "num_labels num_classes problem_type id2label label2id value_head_prefix",
    "any improvement counts in evaluation.early_stopping; remove this key": "early_stopping_threshold early_stopping_min_delta min_delta",
    "set WANDB_TAGS, or the tracker's own variable, in the environment": "tags wandb_tags run_tags",
    "set WANDB_ENTITY in the environment": "wandb_entity wandb_org wandb_team entity",
    "set the variable of wandb in the environment, such as WANDB_RUN_GROUP or WANDB_MODE": (
        "wandb_group wandb_mode wandb_watch wandb_log_model wandb_run_id wandb_notes wandb_job_type"
    ),
    "this tracker is not supported; expected tracking.to with wandb, tensorboard, trackio, mlflow or swanlab": (
        "use_comet comet comet_ml neptune clearml aim dvclive"
    ),
    "set training.precision: bfloat16, float16 or float32; the default, auto, is bfloat16 where a GPU supports it": (
        "bf16 tf32 autocast pure_bf16 bf16_full_eval use_bf16 fp16 fp16_full_eval"
    ),
    "4-bit weights are model.quantization: nf4, together with lora; there are none of 8 bits": (
        "load_in_4bit load_in_8bit qlora quantization_bit quantization_config bnb_4bit_quant_type bnb_4bit_compute_dtype "
        "use_bnb_nested_quant"
    ),
    "dropout is off unless model.dropout sets it; remove this key": "disable_dropout no_dropout",
    "optimizer.betas is a list of both, such as [0.9, 0.999]": "adam_beta1 adam_beta2 beta1 beta2",
    "the direction follows from checkpoints.best; remove this key": "greater_is_better metric_mode",
    "checkpoints.every and minutes count steps and minutes; null turns one off": (
        "save_strategy saves_per_epoch save_epochs save_only_model save_on_each_node"
    ),
    "evaluation.every counts steps; the run is also evaluated at its end": (
        "eval_strategy evaluation_strategy evals_per_epoch eval_delay eval_epochs do_eval"
    ),
    "tracking.log_every counts steps": "logging_strategy logging_first_step",
    "repositories are private unless hub.public: true": "hub_private_repo private hub_always_push hub_strategy hub_revision",
    "set --processes N, or --accelerate-config ddp, fsdp2 or deepspeed_zero2, on the command line": (
        "deepspeed fsdp fsdp_config deepspeed_config zero_stage num_processes nproc_per_node num_gpus n_gpus devices gpus "
        "local_rank ddp_backend ddp_timeout ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers "
        "ddp_static_graph accelerator_config parallelism_config dist_backend strategy num_nodes world_size"
    ),
    "use --accelerate-config fsdp2_offload on the command line": "adam_offload",
    "the loader needs no settings, and no row is left out at the end; remove this key": (
        "dataloader_num_workers dataloader_pin_memory dataloader_drop_last dataloader_prefetch_factor num_workers "
        "dataloader_persistent_workers drop_last"
    ),
    "AdamW is the only optimizer; optimizer.name: adamw_8bit saves memory": (
        "use_galore galore_rank use_apollo apollo_rank use_badam optim_target_modules loraplus_lr_ratio loraplus_lr_embedding"
    ),
    "the reward is read at the end of a response; no token is masked": (
        "train_on_prompt train_on_inputs mask_history ignore_pad_token_for_loss prediction_loss_only"
    ),
    "a sequence is never split over GPUs; remove this key": (
        "ring_attn_size ring_head_stride ds_tensor_parallel_size tensor_parallel_size context_parallel_size sequence_parallel_size"
    ),
    "off unless model.gradient_checkpointing is true": "disable_gradient_checkpointing",
    "model.scratch describes a model with random weights": "train_from_scratch",
    "set TRACKIO_SPACE_ID in the environment": "trackio_space_id",
    "each source has its own numbers in any case": "eval_on_each_dataset",
    "the order of the rows follows from run.seed; remove this key": "shuffle shuffle_dataset shuffle_seed shuffle_buffer_size",
    "only the columns that a source names are read; remove this key": "remove_unused_columns label_names",
    "every run trains a reward model; objective.type sets its loss": "stage task task_type rl trainer_type loss pref_loss reward_model",
    "the columns of a source are its keys, such as chosen and rejected": "columns column_mapping field_mapping",
    "the end and pad tokens are those of the tokenizer; remove this key": (
        "eos_token pad_token resize_vocab special_tokens tokens add_tokens split_special_tokens tokenizer_type"
    ),
    "margins come from the data: margin names their column": "margin_loss use_margin",
    "lora adapts the modules in lora.targets, and always trains the head; remove this key": (
        "modules_to_save lora_modules_to_save additional_target lora_task_type lora_bias"
    ),
    "there is no such setting here; remove this key": (
        "use_liger_kernel liger liger_kernel torch_compile torch_compile_backend torch_compile_mode use_cache do_train "
        "neftune_noise_alpha average_tokens_across_devices torch_empty_cache_steps disable_tqdm log_level "
        "skip_memory_metrics ignore_data_skip optim_args activation_offloading model_init_kwargs "
        "use_fast_tokenizer disable_fast_tokenizer plot_loss include_num_input_tokens_seen overwrite_cache "
        "compute_fp32_loss liger_kernel_config enable_liger_kernel log_on_each_node "
        "logging_nan_inf_filter log_level_replica eval_do_concat_batches eval_use_gather_object include_for_metrics "
        "batch_eval_metrics enable_jit_checkpoint max_ckpt_mem use_ds_universal_ckpt disable_ds_ckpt save_hf_ckpt deepcompile "
        "zpg grad_accum_dtype overlap_comm gradient_checkpointing_kwargs gradient_checkpointing_use_reentrant use_reentrant_gc "
        "activation_checkpointing_kwargs freeze_trainable_layers freeze_vision_tower pissa_init create_new_adapter "
        "adapter_name_or_path use_llama_pro low_cpu_mem_usage rope_scaling use_unsloth upcast_layernorm upcast_lmhead_output "
        "tool_format buffer_size preprocessing_batch_size tokenized_path debug"
    ),
    "a path is written whole, as in data.train.0.path": "dataset_dir media_dir",
    "the run writes everything into run.output_dir": "logging_dir logdir log_dir",
    "the run evaluates and exports at its end; `rmtrain score` predicts": "do_predict predict_with_generate",
    "the chat template is data.chat_template; the tokenizer's own is the default": "apply_chat_template input_template",
    "CPUs are used where there is no GPU; set CUDA_VISIBLE_DEVICES= to use them anyway": "use_cpu no_cuda device",
    "the same command resumes from the latest checkpoint; --resume PATH selects another one": (
        "resume_from_checkpoint resume auto_resume resume_ckpt load_checkpoint ckpt_path"
    ),
    "--fresh renames an existing run directory and starts from scratch": "overwrite_output_dir overwrite",
    "write extends: FILE at the top level of a file; on the command line, name several files": (
        "extends extend _base_ base_config inherit inherits inherit_from"
    ),
}
HINTS: dict[str, str] = {name: advice for advice, names in _ADVICE.items() for name in names.split()}
"""The advice for a name that has another meaning here, or none; `section.name` where only the name in that section is meant."""
SAME_VALUES = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adamw_hf"), "adamw"),
    "adamw_bnb_8bit": "adamw_8bit",
    "constant_with_warmup": "constant",
    "cosine_with_min_lr": "cosine",
    "wsd": "warmup_stable_decay",
    **dict.fromkeys(("bf16", "torch.bfloat16"), "bfloat16"),
    **dict.fromkeys(("fp16", "half", "torch.float16"), "float16"),
    **dict.fromkeys(("fp32", "torch.float32"), "float32"),
}
"""Our names for optimizers, schedules and precisions, by those of transformers and torch that mean the same."""
OTHER_VALUES = {
    **dict.fromkeys(
        ("comet_ml", "comet", "neptune", "clearml", "aim", "dvclive", "codecarbon"),
        "this tracker is not supported; metrics.jsonl in the run has every line",
    ),
    "polynomial": "linear with min_lr is a polynomial of power 1",
    "cosine_warmup_with_min_lr": "cosine with min_lr warms up from zero",
    **dict.fromkeys(("reduce_lr_on_plateau", "greedy"), "a schedule depends on the step only"),
    "float16": "weights in float16 are not supported; training.precision: float16 computes in it",
}
"""The advice for values in other trainers that have no counterpart here."""


def _same_value(value: Any) -> Any:
    return SAME_VALUES.get(value, value) if isinstance(value, str) else value


OrAlias = BeforeValidator(_same_value)
"""Accepts a value under its name in transformers as well, such as `adamw_torch` or `bf16`."""

"""The names of all options, to look at a command line without transformers, whose import takes seconds."""

from collections.abc import Collection

from softlaunch.arguments.sources import read_sources

# As `softlaunch.arguments.parse` knows them, which a test holds; a name that is not here is looked for there
_NAMES = """
accelerator_config activation_checkpointing activation_checkpointing_kwargs adafactor adam_beta1 adam_beta2
adam_epsilon adapter attn_implementation auto_find_batch_size average_tokens_across_devices batch_eval_metrics bf16
bf16_full_eval cache_dir class_file class_weights compare_with_base data_seed dataloader_drop_last
dataloader_in_order dataloader_multiprocessing_context dataloader_num_workers dataloader_persistent_workers
dataloader_pin_memory dataloader_prefetch_factor ddp_backend ddp_broadcast_buffers ddp_bucket_cap_mb
ddp_find_unused_parameters ddp_static_graph ddp_timeout debug deepspeed disable_tqdm do_eval do_predict do_sample
do_train dtype early_stopping_patience early_stopping_threshold enable_jit_checkpoint encoder_dropout
encoder_hidden_size encoder_num_layers encoder_type eval_accumulation_steps eval_delay eval_do_concat_batches
eval_on_start eval_steps eval_strategy eval_use_gather_object evaluation_strategy file_encoding forced_bos_token
fp16 fp16_backend fp16_full_eval fp16_opt_level freeze_trainable_layers fsdp fsdp_config full_determinism
generation_config generation_max_length generation_num_beams gradient_accumulation_steps gradient_checkpointing
gradient_checkpointing_kwargs greater_is_better group_by_length half_precision_backend history_column
hub_always_push hub_model_id hub_private_repo hub_revision hub_strategy hub_token ia3_feedforward_modules
ia3_target_modules ignore_data_skip ignore_pad_token_for_loss include_for_metrics include_num_input_tokens_seen
include_tokens_per_second label_column label_names label_smoothing_factor lang learning_rate legacy_truncation
length_column_name liger_kernel_config load_best_model_at_end local_rank log_level log_level_replica
log_on_each_node logging_dir logging_first_step logging_nan_inf_filter logging_steps logging_strategy lora_alpha
lora_checkpoint lora_dropout lora_r lora_target_modules lr_scheduler_kwargs lr_scheduler_type max_eval_samples
max_grad_norm max_predict_samples max_source_length max_steps max_target_length max_train_samples
metric_for_best_model model_name_or_path model_parallel_mode model_revision modules_to_save neftune_noise_alpha
no_cuda num_beams num_labels num_train_epochs optim optim_args optim_target_modules output_dir overwrite_cache
overwrite_output_dir pad_to_max_length parallelism_config per_device_eval_batch_size per_device_train_batch_size
per_gpu_eval_batch_size per_gpu_train_batch_size pre_seq_len predict_with_generate prediction_loss_only
prefix_dropout prefix_init prefix_init_text prefix_projection preprocessing_num_workers probe_prompts project
prompt_column prompt_init prompt_init_text prompt_style ptuning_checkpoint push_to_hub push_to_hub_model_id
push_to_hub_token quantization_bit remove_unused_columns report_to resize_position_embeddings response_column
restart restore_callback_states_from_checkpoint resume_from_checkpoint run_name save_format save_on_each_node
save_only_model save_safetensors save_steps save_strategy save_total_limit seed skip_bad_rows skip_memory_metrics
sortish_sampler source_prefix temperature test_file text_column text_pair_column tf32 token top_p torch_compile
torch_compile_backend torch_compile_mode torch_empty_cache_steps torchdynamo trackio_bucket_id trackio_space_id
trackio_static_space_id train_file train_on_all_turns train_sampling_strategy trust_remote_code tuning
use_auth_token use_cache use_cpu use_dora use_fast_tokenizer use_liger_kernel use_mps_device use_rslora
val_max_target_length validation_file validation_share warmup_ratio warmup_steps weight_decay xpu_backend
"""
NAMES = frozenset(_NAMES.split())


def check_names(argv: list[str], own: Collection[str] = ()) -> None:
    """Raises ArgumentError that lists the names in `argv` that no option has, each with the nearest one.

    `own`: options of the command that was given `argv`, which may be meant too.
    """
    given, _ = read_sources(argv)
    if all(item.name in NAMES or item.name.removeprefix("no_") in NAMES for item in given):
        return
    from softlaunch.arguments.parse import refuse_unknown

    refuse_unknown(given, own)

"""Names that the original scripts and earlier transformers took, and what they mean today."""

from dataclasses import dataclass
from functools import cache
from typing import Any

from softlaunch.arguments.options import Option, all_options


@dataclass(frozen=True)
class OldName:
    """Today's name `new` of an old one. `when_true` is today's value for a switch that became a choice."""

    new: str
    when_true: Any = None
    below: float | None = None


@dataclass(frozen=True)
class Idle:
    """A name that no longer changes anything. `harmless` is the value that asks for just what happens anyway."""

    reason: str
    harmless: Any = None


_OLD_NAMES = {
    # the original ChatGLM scripts and those derived from them
    "ptuning_checkpoint": OldName("adapter"),
    "lora_checkpoint": OldName("adapter"),
    "use_auth_token": OldName("token"),
    # earlier transformers
    "overwrite_output_dir": OldName("restart"),
    "evaluation_strategy": OldName("eval_strategy"),
    "no_cuda": OldName("use_cpu"),
    "per_gpu_train_batch_size": OldName("per_device_train_batch_size"),
    "per_gpu_eval_batch_size": OldName("per_device_eval_batch_size"),
    "adafactor": OldName("optim", when_true="adafactor"),
    "include_tokens_per_second": OldName("include_num_input_tokens_seen", when_true="all"),
    "warmup_ratio": OldName("warmup_steps", below=1),
    "generation_num_beams": OldName("num_beams"),
    "torchdynamo": OldName("torch_compile_backend"),
    "xpu_backend": OldName("ddp_backend"),
    "push_to_hub_token": OldName("hub_token"),
    "push_to_hub_model_id": OldName("hub_model_id"),
    # both still exist where the second does, which is not so in the oldest supported transformers
    "gradient_checkpointing": OldName("activation_checkpointing"),
    "gradient_checkpointing_kwargs": OldName("activation_checkpointing_kwargs"),
}

_IDLE = {
    "pad_to_max_length": Idle("batches are padded to their longest row", harmless=False),
    "ignore_pad_token_for_loss": Idle("padding never counts in the loss", harmless=True),
    "remove_unused_columns": Idle("row ids travel with the batches", harmless=False),
    "use_fast_tokenizer": Idle("tokenizers are always fast ones", harmless=True),
    "trust_remote_code": Idle("code that lies beside a checkpoint is never run", harmless=False),
    "resize_position_embeddings": Idle("positions are rotary and need no resizing", harmless=False),
    "lang": Idle("it belonged to translation models"),
    "forced_bos_token": Idle("it belonged to translation models"),
    "generation_max_length": Idle("val_max_target_length limits answers, in new tokens"),
    "generation_config": Idle("num_beams, do_sample, top_p and temperature say how to generate"),
    "train_sampling_strategy": Idle("rows of like length go together anyway", harmless="group_by_length"),
    "group_by_length": Idle("rows of like length go together anyway", harmless=True),
    "label_smoothing_factor": Idle("the loss is plain cross-entropy", harmless=0.0),
    "prediction_loss_only": Idle("an evaluation keeps losses, and answers where they are scored", harmless=False),
    "batch_eval_metrics": Idle("an evaluation keeps losses, and answers where they are scored", harmless=False),
    "eval_do_concat_batches": Idle("an evaluation keeps losses, and answers where they are scored", harmless=True),
    "include_for_metrics": Idle("an evaluation keeps losses, and answers where they are scored"),
    "sortish_sampler": Idle("rows of like length go together anyway", harmless=False),
    "length_column_name": Idle("lengths are taken from the rows", harmless="length"),
    "parallelism_config": Idle("a file cannot hold it; Accelerate's own configuration says how to parallelize"),
    "save_safetensors": Idle("weights are always written as safetensors", harmless=True),
    "use_mps_device": Idle("an accelerator that is there is used", harmless=True),
    "fp16_opt_level": Idle("it belonged to Apex"),
    "fp16_backend": Idle("PyTorch's own mixed precision is used", harmless="auto"),
    "half_precision_backend": Idle("PyTorch's own mixed precision is used", harmless="auto"),
}


def find_old_name(name: str) -> OldName | None:
    """What an old name means, if `name` is one and today's name exists in the installed transformers.

    A new name that the installed transformers does not have yet counts as an old one of what it has instead, so that
    one argument file serves all supported versions.
    """
    options = all_options()
    old = _OLD_NAMES.get(name)
    if old is not None:
        return old if old.new in options else None
    earlier = [before for before, after in _OLD_NAMES.items() if after.new == name and before in options]
    return OldName(earlier[0]) if earlier and name not in options else None


def find_idle(name: str) -> Idle | None:
    """Why `name` no longer changes anything, if it is such a name."""
    return _IDLE.get(name)


@cache
def current_options() -> dict[str, Option]:
    """The options to write today: all but the old and idle names that the installed transformers still has."""
    return {name: option for name, option in all_options().items() if not find_idle(name) and not find_old_name(name)}


def old_names() -> dict[str, str]:
    """Old names that are accepted, with today's."""
    return {name: old.new for name, old in _OLD_NAMES.items() if find_old_name(name)}


def idle_names() -> dict[str, str]:
    """Names that are accepted without effect, with the reason."""
    return {name: idle.reason for name, idle in _IDLE.items()}

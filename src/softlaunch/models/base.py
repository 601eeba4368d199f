"""The base model and the tokenizer that a run's arguments name."""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from softlaunch.arguments import Arguments
from softlaunch.errors import ArgumentError
from softlaunch.models.chatglm import glm_config
from softlaunch.models.load import choose_dtype, load_model, read_config, refuse_packed_weights
from softlaunch.models.quantize import quantization_config
from softlaunch.models.tokenizer import load_tokenizer
from softlaunch.models.weight_files import check_weight_files


def check_base(arguments: Arguments, *, answers: bool = True) -> None:
    """Stop if the base model cannot be loaded, as far as its config and the headers of its files tell. It `answers`, so
    that its positions must do for prompt and answer.

    Raises CheckpointError for a model that is missing, incomplete, damaged or of an unsupported kind, ArgumentError for
    options that do not suit it.
    """
    model = arguments.model
    path = model.model_name_or_path
    config = read_config(path, **model.hub)
    if config.get("model_type") == "chatglm":
        glm_config(config, path)
    if model.quantization_bit is not None:
        quantization_config(model.quantization_bit, choose_dtype(model.dtype))
    if answers:
        _check_lengths(arguments, config)
    if Path(path).is_dir():
        refuse_packed_weights(path, check_weight_files(Path(path)))


def load_base_tokenizer(arguments: Arguments) -> PreTrainedTokenizerBase:
    """The tokenizer that belongs to the base model."""
    model = arguments.model
    return load_tokenizer(model.model_name_or_path, prompt_style=model.prompt_style, **model.hub)


def load_base(arguments: Arguments, *, weights: str | None = None, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The base model, in the precision and on the devices that the run asks for.

    `weights` is another directory to take the model from, `dtype` another precision than the arguments'.
    """
    model, training = arguments.model, arguments.training
    return load_model(
        weights or model.model_name_or_path,
        dtype=dtype or choose_dtype(model.dtype, bf16=training.bf16, fp16=training.fp16),
        quantization_bit=model.quantization_bit,
        attn_implementation=model.attn_implementation,
        model_parallel=model.model_parallel_mode,
        **model.hub,
    )


def _check_lengths(arguments: Arguments, config: dict[str, Any]) -> None:
    """Raises ArgumentError if the longest row that the limits allow has more positions than the model knows."""
    inner = config.get("text_config")
    config = inner if isinstance(inner, dict) else config
    longest = config.get("seq_length") or config.get("max_position_embeddings")
    data, training = arguments.data, arguments.training
    limits = {"max_target_length": data.max_target_length} if training.do_train or training.do_eval else {}
    if training.do_predict or training.predict_with_generate:
        limits["val_max_target_length"] = data.val_max_target_length or 0
    for name, answer in limits.items():
        total = data.max_source_length + answer + 1  # the eos token
        if isinstance(longest, int) and total > longest:
            raise ArgumentError(
                "max_source_length {source} and {name} {answer} allow rows of {total} tokens, but {path} knows at most "
                "{longest} positions: lower one of them",
                source=data.max_source_length,
                name=name,
                answer=answer,
                total=total,
                path=arguments.model.model_name_or_path,
                longest=longest,
            )

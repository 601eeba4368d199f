"""The base model and the tokenizer that a run's arguments name."""

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from softlaunch.arguments import Arguments
from softlaunch.models.load import choose_dtype, load_model
from softlaunch.models.tokenizer import load_tokenizer


def load_base(
    arguments: Arguments, *, weights: str | None = None, dtype: torch.dtype | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base model, in the precision and on the devices that the run asks for, and its tokenizer.

    `weights` is another directory to take the model from, `dtype` another precision than the arguments'.
    """
    model, training = arguments.model, arguments.training
    tokenizer = load_tokenizer(model.model_name_or_path, prompt_style=model.prompt_style, **model.hub)
    base = load_model(
        weights or model.model_name_or_path,
        dtype=dtype or choose_dtype(model.dtype, bf16=training.bf16, fp16=training.fp16),
        quantization_bit=model.quantization_bit,
        attn_implementation=model.attn_implementation,
        model_parallel=model.model_parallel_mode,
        **model.hub,
    )
    return base, tokenizer

"""Training the base itself, in full or its last layers: how it is loaded, and how it is left."""

from collections.abc import Callable

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from softlaunch.arguments import Arguments
from softlaunch.arguments.defaults import NUM_TRAINED_LAYERS
from softlaunch.models import load_base
from softlaunch.models.save import check_layout, save_model_directory
from softlaunch.tuning import earlier_model, train_all, train_last_layers


def load_to_finetune(arguments: Arguments, method: str) -> PreTrainedModel:
    """The model, of which `method` (full or freeze) makes all or the last layers trainable if the run trains.

    Raises ArgumentError for what does not go with it: quantization, an adapter, a layout that the base is not in.
    """
    weights, trains = earlier_model(arguments), arguments.training.do_train
    model = load_base(arguments, weights=weights, dtype=_dtype(arguments, method) if trains else None)
    if not trains:
        return model
    check_layout(model, arguments.tuning.save_format)  # type: ignore[arg-type]
    if method == "full":
        return train_all(model)
    return train_last_layers(model, arguments.tuning.freeze_trainable_layers or NUM_TRAINED_LAYERS)


def saver(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, arguments: Arguments
) -> Callable[[str, dict[str, torch.Tensor]], None]:
    """`save_whole` of `CausalTrainer`: in the layout that the run asks for, in half precision if it trained in it."""
    training, layout = arguments.training, arguments.tuning.save_format
    dtype = torch.bfloat16 if training.bf16 else torch.float16 if training.fp16 else None

    def save(directory: str, tensors: dict[str, torch.Tensor]) -> None:
        save_model_directory(model, tokenizer, directory, layout=layout, tensors=tensors, dtype=dtype)  # type: ignore[arg-type]

    return save


def _dtype(arguments: Arguments, method: str) -> torch.dtype | None:
    """Float32 for what trains, which is then its own master copy; frozen layers may be in half precision if autocast
    lets them work together.
    """
    training = arguments.training
    return None if method == "freeze" and (training.bf16 or training.fp16) else torch.float32

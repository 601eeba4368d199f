"""Training the base itself: all of it, or its last layers."""

import torch
from torch import nn
from transformers import PreTrainedModel

from softlaunch.errors import ArgumentError


def train_all(model: PreTrainedModel) -> PreTrainedModel:
    """Make every parameter trainable, in float32; returns `model`.

    The parameters are the master weights: in half precision autocast computes with rounded ones. (DeepSpeed keeps
    float32 copies of its own.) Raises ArgumentError for a quantized model.
    """
    _check_not_quantized(model)
    model.requires_grad_(True)
    return _in_float32(model)


def train_last_layers(model: PreTrainedModel, num_layers: int) -> PreTrainedModel:
    """Make the last `num_layers` layers trainable, in float32, and freeze all else as it is; returns `model`.

    Raises ArgumentError for a quantized model, and for more layers than there are.
    """
    _check_not_quantized(model)
    layers = next(m for m in model.modules() if isinstance(m, nn.ModuleList))
    if num_layers > len(layers):
        raise ArgumentError(
            "freeze_trainable_layers is {num}, but {model} has {all} layers",
            num=num_layers,
            model=type(model).__name__,
            all=len(layers),
        )
    model.requires_grad_(False)
    for layer in layers[-num_layers:]:
        layer.requires_grad_(True)
    return _in_float32(model)


def _in_float32(model: PreTrainedModel) -> PreTrainedModel:
    for parameter in model.parameters():
        if parameter.requires_grad and not hasattr(parameter, "ds_id"):
            parameter.data = parameter.data.to(torch.float32)
    return model


def _check_not_quantized(model: PreTrainedModel) -> None:
    if getattr(model, "quantization_method", None) is not None:
        raise ArgumentError(
            "quantized weights cannot be trained: leave quantization_bit out, or train an adapter instead "
            "(recipes/lora_chatglm.py)"
        )

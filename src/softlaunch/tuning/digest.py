"""Telling two states of a model apart, and with them the answers that they give."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft import PeftModel

from softlaunch.tuning.fingerprint import short_fingerprint
from softlaunch.tuning.prefix_model import PrefixModel
from softlaunch.tuning.soft_prompt import SoftPromptModel
from softlaunch.tuning.split import gathered

_SAMPLES_PER_TENSOR = 16


@torch.no_grad()
def digest(model: Any) -> str:
    """Short digest of what decides about the answers: the base, and the active adapters unless they are disabled.

    Of a model without adapters some numbers of every tensor are taken. All processes call it.
    """
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    name = base.name_or_path if isinstance(model, PeftModel) else ""  # a trained model is the same wherever it lies
    found = hashlib.sha256(json.dumps([name, short_fingerprint(base)]).encode())
    for tensor in _adapters(model) if isinstance(model, PeftModel) else _samples(model):
        found.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:12]


def _adapters(model: PeftModel) -> Iterator[torch.Tensor]:
    """The tensors of what is active."""
    if isinstance(model, PrefixModel) and model.lora:
        yield from _adapters(model.lora)
    if model._adapters_disabled:
        return
    if isinstance(model, PrefixModel):
        yield from _whole(list(model.encoder(model.active_adapter).parameters()))
    elif isinstance(model, SoftPromptModel):
        with gathered(list(model.prompt_encoder.parameters())):
            yield model.prompt()
    else:
        active = set(model.active_adapters)
        named = [(name, p) for name, p in model.named_parameters() if active & set(name.split("."))]
        yield from _whole([p for _, p in named])
        alphas = [getattr(model.peft_config[name], "lora_alpha", 0) for name in model.active_adapters]
        yield torch.tensor(alphas, dtype=torch.float32)


def _whole(parameters: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    for parameter in parameters:
        with gathered([parameter]) as (tensor,):
            yield tensor


def _samples(model: torch.nn.Module) -> Iterator[torch.Tensor]:
    for tensor in _whole(list(model.parameters())):
        yield tensor.flatten()[:: max(1, tensor.numel() // _SAMPLES_PER_TENSOR)]

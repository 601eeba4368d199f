"""Telling one base model from another, whatever precision it was loaded in and whatever PEFT has put into it."""

from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel

from softlaunch.tuning.split import gathered

_NUM_SAMPLES = 32


@torch.no_grad()
def fingerprint(model: PreTrainedModel) -> list[float]:
    """64 numbers that every way of loading `model` keeps: 32 embedding entries, and one of each of 32 norms and biases.

    The head of a classifier is left out: it is trained with every method.

    Quantization leaves these tensors alone; half precision rounds them, so compare with `num_differences`.
    """
    embedding: Any = _own(model.get_input_embeddings()).weight
    vectors = [
        p
        for name, p in sorted(_own_parameters(model), key=lambda item: item[0])
        if len(getattr(p, "ds_shape", p.shape)) == 1 and not _is_head(model, name)
    ]
    vectors = [vectors[i * len(vectors) // _NUM_SAMPLES] for i in range(_NUM_SAMPLES)]
    with gathered([embedding, *vectors]) as (embedding, *vectors):
        rows, columns = embedding.shape
        samples = [embedding[i * rows // _NUM_SAMPLES, i * columns // _NUM_SAMPLES] for i in range(_NUM_SAMPLES)]
        samples += [vector[i % len(vector)] for i, vector in enumerate(vectors)]
        return [float(f"{sample.item():.4g}") for sample in samples]


def num_differences(one: list[float], other: list[float]) -> int:
    """How many of the numbers differ by more than half precision explains: 0.5 %, or what float16 holds near zero."""
    pairs = zip(one, other, strict=True)
    return sum(abs(a - b) > 0.005 * max(abs(a), abs(b)) + 2**-16 for a, b in pairs)


def _is_head(model: PreTrainedModel, name: str) -> bool:
    """Whether a parameter belongs to the part that a classifier trains on top of the base."""
    inside = f"{model.base_model_prefix}."
    return ".pooler." in name or (hasattr(model, model.base_model_prefix) and not name.startswith(inside))


def _own(module: nn.Module) -> nn.Module:
    """The base's layer inside one that PEFT has put in its place."""
    if isinstance(module, ModulesToSaveWrapper):
        return _own(module.original_module)
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def _own_parameters(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """The base's parameters under the names that they have without PEFT."""
    found: list[tuple[str, torch.Tensor]] = []
    for name, child in model.named_children():
        found += [(f"{name}.{rest}", parameter) for rest, parameter in _own_parameters(_own(child))]
    return [*model.named_parameters(recurse=False), *found]

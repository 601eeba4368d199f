"""Telling one base model from another, whatever precision it was loaded in and whatever PEFT has put into it."""

from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel

from softlaunch.tuning.split import gathered

_NUM_SAMPLES = 32
_NUM_MATRICES = 64


def fingerprint(model: PreTrainedModel) -> list[float]:
    """The 64 numbers of `short_fingerprint`, and one of each of 64 matrices unless these are quantized: they tell a
    base from one that LoRA was merged into.
    """
    return [*short_fingerprint(model), *_of_matrices(model)]


@torch.no_grad()
def short_fingerprint(model: PreTrainedModel) -> list[float]:
    """64 numbers that every way of loading `model` keeps: 32 embedding entries, and one of each of 32 norms and biases.

    The head of a classifier is left out: it is trained with every method.

    Quantization leaves these tensors alone; half precision rounds them, so compare with `num_differences`.
    """
    embedding: Any = _own(model.get_input_embeddings()).weight
    vectors = _with_dimensions(model, 1)
    vectors = [vectors[i * len(vectors) // _NUM_SAMPLES] for i in range(_NUM_SAMPLES)]
    with gathered([embedding, *vectors]) as (embedding, *vectors):
        rows, columns = embedding.shape
        samples = [embedding[i * rows // _NUM_SAMPLES, i * columns // _NUM_SAMPLES] for i in range(_NUM_SAMPLES)]
        samples += [vector[i % len(vector)] for i, vector in enumerate(vectors)]
        return [float(f"{sample.item():.4g}") for sample in samples]


def num_differences(one: list[float], other: list[float]) -> tuple[int, int]:
    """How many of the numbers differ by more than half precision explains (0.5 %, or what float16 holds near zero), and
    how many were compared: those of matrices are missing where one base was quantized, and in earlier adapters.
    """
    compared = min(len(one), len(other))
    if compared < 2 * _NUM_SAMPLES:
        raise ValueError(f"a fingerprint of {compared} numbers")
    pairs = zip(one[:compared], other[:compared], strict=True)
    return sum(abs(a - b) > 0.005 * max(abs(a), abs(b)) + 2**-16 for a, b in pairs), compared


@torch.no_grad()
def _of_matrices(model: PreTrainedModel) -> list[float]:
    if getattr(model, "quantization_method", None) is not None:
        return []
    matrices, samples = _with_dimensions(model, 2), []
    for i in range(_NUM_MATRICES):
        with gathered([matrices[i * len(matrices) // _NUM_MATRICES]]) as (matrix,):  # large: one at a time
            rows, columns = matrix.shape
            samples.append(matrix[i * rows // _NUM_MATRICES, i * columns // _NUM_MATRICES].item())
    return [float(f"{sample:.4g}") for sample in samples]


def _with_dimensions(model: PreTrainedModel, number: int) -> list[Any]:
    """The base's parameters with so many dimensions, sorted by name."""
    return [
        p
        for name, p in sorted(_own_parameters(model), key=lambda item: item[0])
        if len(getattr(p, "ds_shape", p.shape)) == number and not _is_head(model, name)
    ]


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

"""Writing a whole model, as a base for other runs and programs."""

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import GlmForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from softlaunch.errors import ArgumentError
from softlaunch.files import write_json
from softlaunch.models.chatglm import weight_transforms

Layout = Literal["glm", "chatglm"]
_WEIGHTS = (".safetensors", ".bin", ".pt", ".index.json")


def check_layout(model: PreTrainedModel, layout: Layout) -> None:
    """Raise ArgumentError for `chatglm` unless `model` is a GLM from a local directory in the released layout."""
    source = Path(str(model.name_or_path))
    if layout == "chatglm" and not (isinstance(model, GlmForCausalLM) and _is_released(source)):
        raise ArgumentError(
            "save_format chatglm writes the released ChatGLM layout with the configuration and tokenizer of the base, "
            "but {base} is no local directory in that layout: leave save_format out",
            base=model.name_or_path,
        )


def save_model_directory(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: str | Path,
    *,
    layout: Layout = "glm",
    tensors: dict[str, torch.Tensor] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a directory that `load_model` and `load_tokenizer` read.

    `glm`: transformers' own layout, of any architecture, for stock `from_pretrained` too. `chatglm`: weights under the
    released names, beside the released configuration, tokenizer and code of the base, see `check_layout`. `tensors` are
    the parameters where `model` does not hold them whole, `dtype` the precision that they are written in.
    """
    directory = Path(directory)
    check_layout(model, layout)
    tensors = {n: p.detach() for n, p in model.named_parameters()} if tensors is None else tensors
    tensors = {n: t.to(dtype) if dtype is not None and t.is_floating_point() else t for n, t in tensors.items()}
    written: Any = model
    conversions, dtype_name = getattr(model, "_weight_conversions", None), _name(next(iter(tensors.values())).dtype)
    if layout == "chatglm":
        written._weight_conversions = weight_transforms()  # save_pretrained turns them round
    try:
        model.save_pretrained(directory, state_dict=tensors)
    finally:
        written._weight_conversions = conversions
    if layout == "glm":
        tokenizer.save_pretrained(directory)
        _set(directory / "config.json", "dtype", dtype_name)  # save_pretrained has written that of the model
    else:
        _copy_released(Path(str(model.name_or_path)), directory)
        _set(directory / "config.json", "torch_dtype", dtype_name)


def _is_released(source: Path) -> bool:
    config = source / "config.json"
    return config.is_file() and json.loads(config.read_text(encoding="utf-8")).get("model_type") == "chatglm"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _set(file: Path, key: str, value: str) -> None:
    content = {**json.loads(file.read_text(encoding="utf-8")), key: value}
    write_json(file, content)


def _copy_released(source: Path, directory: Path) -> None:
    """All that lies beside the weights, over what was written for transformers' layout."""
    for file in source.iterdir():
        if file.is_file() and not file.name.endswith(_WEIGHTS):
            shutil.copyfile(file, directory / file.name)

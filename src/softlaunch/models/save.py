"""Writing a whole model with its tokenizer, in transformers' layout or in the one that ChatGLM is released in."""

import json
import shutil
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub import save_torch_state_dict
from transformers import GlmConfig, GlmForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from softlaunch.errors import ArgumentError, CheckpointError
from softlaunch.files import write_json
from softlaunch.models.layouts import released_config, released_tensors, write_glm_config
from softlaunch.models.load import read_config
from softlaunch.models.tokenizer import load_tokenizer
from softlaunch.models.tokenizer_files import write_glm_tokenizer, write_released_tokenizer

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
    source, dtype_name = Path(str(model.name_or_path)), _name(next(iter(tensors.values())).dtype)
    if layout == "chatglm":
        _write_released_weights(tensors, model, directory)
        _copy_released(source, directory)
        _set(directory / "config.json", "torch_dtype", dtype_name)
        return
    model.save_pretrained(directory, state_dict=tensors)
    tokenizer.save_pretrained(directory)
    if isinstance(model.config, GlmConfig):
        write_glm_config(model.config, directory)
    _set(directory / "config.json", "dtype", dtype_name)  # both have written that of the model


def stored_dtype(path: str) -> str:
    """The name of the dtype that the weights of the model at `path` are stored in, by its config; else float32."""
    config = read_config(path)
    if "quantization_config" in config:
        raise CheckpointError(
            "{path}: the weights are stored quantized; give the model in 16 or 32 bits with --base", path=path
        )
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")
    if dtype not in ("float32", "float16", "bfloat16"):
        raise CheckpointError(
            "{path}: the weights are stored in {dtype}; choose what to write with --dtype", path=path, dtype=dtype
        )
    return dtype


def save_model(model: PreTrainedModel, base: str, target: Path, layout: Layout | None) -> list[str]:
    """Write `model` and the tokenizer of `base` into the directory `target`; returns notes for the user.

    `base`: the directory or hub id that the model was loaded from; where it is in the released layout and that is asked
    for, its other files go along as they are. Raises CheckpointError for `chatglm` and a model that is none.
    """
    is_released = read_config(base).get("model_type") == "chatglm"
    if layout == "chatglm" and not (is_released and Path(base).is_dir()):
        return _save_as_released(model, base, target)
    save_model_directory(model, load_tokenizer(base), target, layout=layout or "glm", dtype=model.dtype)
    if layout == "chatglm" or not is_released:
        return []
    return write_glm_tokenizer(Path(base), target)


def _save_as_released(model: PreTrainedModel, base: str, target: Path) -> list[str]:
    """The released layout where no release is at hand to take config and tokenizer from."""
    require_chatglm(model.config.model_type)
    tensors = {name: tensor.to(model.dtype) for name, tensor in model.state_dict().items()}
    _write_released_weights(tensors, model, target)
    write_json(target / "config.json", released_config(model.config))  # type: ignore[arg-type]
    return write_released_tokenizer(Path(base), target)


def require_chatglm(model_type: str) -> None:
    """Raises CheckpointError unless the model is one that the released ChatGLM layout can hold."""
    if model_type not in ("glm", "chatglm"):
        raise CheckpointError(
            "the base's model_type is {kind!r}; the layout chatglm is for ChatGLM2, ChatGLM3 and GLM-4 only",
            kind=model_type,
        )


def _write_released_weights(tensors: dict[str, torch.Tensor], model: PreTrainedModel, directory: Path) -> None:
    assert isinstance(model.config, GlmConfig)
    directory.mkdir(parents=True, exist_ok=True)
    save_torch_state_dict(released_tensors(tensors, model.config), directory)


def _is_released(source: Path) -> bool:
    config = source / "config.json"
    return config.is_file() and json.loads(config.read_text(encoding="utf-8")).get("model_type") == "chatglm"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _set(file: Path, key: str, value: str) -> None:
    content = {**json.loads(file.read_text(encoding="utf-8")), key: value}
    write_json(file, content)


def _copy_released(source: Path, directory: Path) -> None:
    """All that lies beside the weights."""
    for file in source.iterdir():
        if file.is_file() and not file.name.endswith(_WEIGHTS):
            shutil.copyfile(file, directory / file.name)

"""Writing a whole model with its tokenizer, in transformers' layout or in the one that ChatGLM is released in."""

from pathlib import Path

from huggingface_hub import save_torch_state_dict
from transformers import GlmConfig, PreTrainedModel

from softlaunch.errors import CheckpointError
from softlaunch.files import write_json
from softlaunch.models.export import Layout, save_model_directory
from softlaunch.models.layouts import released_config, released_tensors, write_glm_config
from softlaunch.models.load import read_config
from softlaunch.models.tokenizer import load_tokenizer
from softlaunch.models.tokenizer_files import write_glm_tokenizer, write_released_tokenizer


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
    assert isinstance(model.config, GlmConfig)
    write_glm_config(model.config, target)
    return write_glm_tokenizer(Path(base), target)


def _save_as_released(model: PreTrainedModel, base: str, target: Path) -> list[str]:
    """The released layout where no release is at hand to take config and tokenizer from."""
    config = model.config
    require_chatglm(config.model_type)
    assert isinstance(config, GlmConfig)
    tensors = {name: tensor.to(model.dtype) for name, tensor in model.state_dict().items()}
    save_torch_state_dict(released_tensors(tensors, config), target)
    write_json(target / "config.json", released_config(config))
    return write_released_tokenizer(Path(base), target)


def require_chatglm(model_type: str) -> None:
    """Raises CheckpointError unless the model is one that the released ChatGLM layout can hold."""
    if model_type not in ("glm", "chatglm"):
        raise CheckpointError(
            "the base's model_type is {kind!r}; the layout chatglm is for ChatGLM2, ChatGLM3 and GLM-4 only",
            kind=model_type,
        )

"""A base model by path: released ChatGLM2/3 and GLM-4 natively, any other causal LM as transformers loads it."""

import logging
import os
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.modeling_utils import set_zero3_state

from softlaunch.errors import CheckpointError
from softlaunch.messages import say
from softlaunch.models.chatglm import glm_config, load_released_chatglm
from softlaunch.models.quantize import keep_weights_as_loaded, own_gpu, quantization_config
from softlaunch.models.source import nothing_there, require_model
from softlaunch.models.weight_files import check_indexes

logger = logging.getLogger(__name__)


def default_dtype() -> torch.dtype:
    """bfloat16 where the GPU computes in it, else float16 on a GPU, else float32."""
    if not torch.cuda.is_available():
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def choose_dtype(name: str = "auto", *, bf16: bool = False, fp16: bool = False) -> torch.dtype:
    """The dtype called `name`; for `auto` that of the training (`bf16`, `fp16`), else what the hardware is best at."""
    if name != "auto":
        return getattr(torch, name)
    return torch.bfloat16 if bf16 else torch.float16 if fp16 else default_dtype()


def load_model(
    path: str,
    *,
    dtype: torch.dtype | None = None,
    quantization_bit: int | None = None,
    attn_implementation: str | None = None,
    model_parallel: bool = False,
    **hub_kwargs: Any,
) -> PreTrainedModel:
    """The causal LM in a local directory or under a hub id, in evaluation mode and with all its weights.

    `dtype`: of the weights, `default_dtype()` when not given. `quantization_bit` 4 or 8 quantizes the linear layers of
    the blocks while they are read, and puts the model on this process's GPU if there is one; otherwise it is on the
    CPU, as long as no `device_map` is given. `model_parallel` spreads the layers over the GPUs of this one process.
    `hub_kwargs`: revision, cache_dir, token, device_map of `from_pretrained`.

    Raises ArgumentError for other numbers of bits, CheckpointError when the directory is missing, incomplete, of an
    unsupported kind or unlike its config.
    """
    dtype = dtype or default_dtype()
    released = read_config(path, **{k: v for k, v in hub_kwargs.items() if k != "device_map"})
    check_indexes(Path(path))
    # Mismatched tensors are reported by `_check_complete`, with what to do about them
    kwargs: dict[str, Any] = {
        "dtype": dtype,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,
        **hub_kwargs,
    }
    if attn_implementation is not None:
        kwargs["attn_implementation"] = attn_implementation
    if model_parallel and _can_spread():
        kwargs["device_map"] = "auto"
    if quantization_bit is not None:
        kwargs["quantization_config"] = quantization_config(quantization_bit, dtype)
    try:
        with nullcontext() if quantization_bit is None else own_gpu():
            if released.get("model_type") == "chatglm":
                model, info = load_released_chatglm(path, released, **kwargs)
            else:
                loaded: Any = AutoModelForCausalLM.from_pretrained(path, **kwargs)
                model, info = loaded
    except CheckpointError:
        raise
    except Exception as error:
        # Whatever transformers, torch and safetensors raise over files that are missing, cut off or not what they seem
        raise CheckpointError("{path}: the model cannot be loaded: {error}", path=path, error=error) from error
    _check_complete(path, info)
    if quantization_bit == 4:
        keep_weights_as_loaded(model)
    return model


def _can_spread() -> bool:
    """Whether this process has several GPUs for itself; says why if not."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        reason = say("there are several processes, and each has its own GPU")
    elif torch.cuda.device_count() < 2:
        reason = say("there are no GPUs to spread the model over")
    else:
        return True
    logger.warning("%s", say("model_parallel_mode has no effect: {reason}", reason=reason))
    return False


def load_skeleton(path: str, **hub_kwargs: Any) -> PreTrainedModel:
    """The model without its weights, which are on the meta device: what its config says, and what turns its keys.

    Raises CheckpointError as `load_model` does, as far as the config goes.
    """
    written = read_config(path, **hub_kwargs)
    config: Any
    if written.get("model_type") == "chatglm":
        config = glm_config(written, path)
    else:
        config = AutoConfig.from_pretrained(path, **hub_kwargs)
    with torch.device("meta"), set_zero3_state():  # else ZeRO-3 would split weights that there are not
        model = AutoModelForCausalLM.from_config(config)
    rotary = getattr(model.base_model, "rotary_emb", None)
    if rotary is not None:
        model.base_model.rotary_emb = type(rotary)(config)
    return model


def read_config(path: str, **hub_kwargs: Any) -> dict[str, Any]:
    """The content of `config.json`; raises CheckpointError when there is none."""
    require_model(path, **hub_kwargs)
    if Path(path).is_dir() and not (Path(path) / "config.json").is_file():
        if (Path(path) / "adapter_config.json").is_file():
            raise CheckpointError(
                "{path}: this directory holds an adapter and no base model; give it as adapter, and the model that it "
                "was trained on as model_name_or_path",
                path=path,
            )
        raise CheckpointError(
            "{path}: no config.json here; model_name_or_path takes a checkpoint directory as released", path=path
        )
    try:
        config = PretrainedConfig.get_config_dict(path, **hub_kwargs)[0]
        return dict(config.items())
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        if Path(path).is_dir():
            raise CheckpointError(
                "{file}: this is not valid JSON ({error}); fetch the file again",
                file=Path(path) / "config.json",
                error=error.__cause__ or error,
            ) from error
        raise nothing_there(path, error) from error


def refuse_packed_weights(path: str, names: Iterable[str]) -> None:
    """Raises CheckpointError if tensors of these names hold weights that the original ChatGLM code quantized."""
    packed = sorted(name for name in names if name.endswith("weight_scale"))
    if packed:
        raise CheckpointError(
            "{path}: these weights were quantized by the original code ({name}, …) and cannot be unpacked; use the "
            "float16 release of the model, with quantization_bit 4 or 8 if memory is short",
            path=path,
            name=packed[0],
        )


def _check_complete(path: str, info: dict[str, Any]) -> None:
    missing, mismatched = sorted(info["missing_keys"]), sorted(info["mismatched_keys"])
    refuse_packed_weights(path, info["unexpected_keys"])
    if missing or mismatched:
        raise CheckpointError(
            "{path}: the weights do not fit config.json: {num_missing} missing {missing}, {num_mismatched} of "
            "another shape {mismatched}; a shard may be absent, or the config belongs to another model",
            path=path,
            num_missing=len(missing),
            missing=missing[:3],
            num_mismatched=len(mismatched),
            mismatched=mismatched[:3],
        )
    if info["unexpected_keys"]:
        unexpected = sorted(info["unexpected_keys"])
        names = ", ".join(unexpected[:5]) + (", …" if len(unexpected) > 5 else "")
        values = {"path": path, "number": len(unexpected), "names": names}
        logger.warning(say("{path}: {number} tensors are not used: {names}", **values))

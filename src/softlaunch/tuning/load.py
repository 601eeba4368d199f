"""Putting a trained adapter of any kind on its base."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel

from softlaunch.errors import ArgumentError, CheckpointError
from softlaunch.files import sha256
from softlaunch.run_directory import CONFIG_FILE, MERGE_FILE, WEIGHTS_FILE, find_adapter, read_json
from softlaunch.tuning.adapter_model import AdapterModel, check_base, does_not_fit, read_config
from softlaunch.tuning.damage import cannot_be_read
from softlaunch.tuning.fingerprint import fingerprint
from softlaunch.tuning.prefix_encoder import PEFT_TYPE
from softlaunch.tuning.prefix_model import PrefixModel, lora_beside
from softlaunch.tuning.released import LAYERED, in_layout_of
from softlaunch.tuning.soft_prompt import SoftPromptModel

_PREFIXES = (None, PEFT_TYPE, "PREFIX_TUNING")  # None: no configuration, as the original scripts leave it
_SOFT_PROMPTS = ("PROMPT_TUNING", "P_TUNING")


def load_adapter(
    model: PreTrainedModel | AdapterModel | PrefixModel,
    path: str | Path,
    *,
    adapter_name: str = "default",
    trainable: bool = False,
    num_virtual_tokens: int | None = None,
) -> PeftModel:
    """Put the adapter found at `path` on `model`, and make it active.

    `path`: what `save_pretrained` wrote, or a run's output directory with `adapter/` in it; any adapter of PEFT (LoRA,
    IA3, prompt tuning, prefix tuning, …), also one for the released ChatGLM code (`query_key_value`); or a P-Tuning v2
    checkpoint of the original scripts. LoRA that was saved with a prefix comes with it, under the same name. `model`
    may bear adapters already: others of the same kind, or LoRA where this is a prefix and the other way round; both
    then work.

    Raises CheckpointError when the adapter is broken or was made for another base, or when a prefix is not
    `num_virtual_tokens` long; ArgumentError when it cannot be put beside those that are there.
    """
    directory = find_adapter(Path(path)) or Path(path)
    with cannot_be_read(directory):
        return _load(model, directory, adapter_name, trainable, num_virtual_tokens)


def _load(
    model: PreTrainedModel | AdapterModel | PrefixModel,
    directory: Path,
    adapter_name: str,
    trainable: bool,
    num_virtual_tokens: int | None,
) -> PeftModel:
    kind = _kind(directory)
    _check_not_merged(str(model.name_or_path), directory)
    if kind in _PREFIXES:
        return _load_prefix(model, directory, adapter_name, trainable, num_virtual_tokens)
    if isinstance(model, PrefixModel):
        return _load_beneath(model, directory, adapter_name, trainable)
    with in_layout_of(model, directory) if kind in LAYERED else nullcontext(directory) as fitting:
        if isinstance(model, AdapterModel):
            _check_beside(model, kind, directory)
            model.load_adapter(fitting, adapter_name, is_trainable=trainable)
            model.set_adapter(adapter_name, inference_mode=not trainable)
            return model
        return _load_into(model, fitting, adapter_name, trainable)


def _load_into(base: PreTrainedModel, directory: Path, adapter_name: str, trainable: bool) -> AdapterModel:
    check_base(directory, fingerprint(base), str(base.name_or_path))
    config = read_config(directory, trainable=trainable)
    if config.is_prompt_learning and config.peft_type not in _SOFT_PROMPTS:
        raise CheckpointError(
            "{path}: adapters of the type {type} are not supported", path=directory, type=_kind(directory)
        )
    make = SoftPromptModel if config.is_prompt_learning else AdapterModel
    try:
        tuned = make(base, config, adapter_name)
    except (ValueError, KeyError, TypeError) as error:  # layers that PEFT does not find
        raise does_not_fit(directory, error) from error
    tuned.load_adapter(directory, adapter_name, is_trainable=trainable)
    return tuned


def _load_prefix(
    model: Any, directory: Path, adapter_name: str, trainable: bool, num_virtual_tokens: int | None
) -> PrefixModel:
    if isinstance(model, PrefixModel):
        model.load_adapter(directory, adapter_name, is_trainable=trainable)
        model.set_adapter(adapter_name, inference_mode=not trainable)
        return model
    if isinstance(model, SoftPromptModel):
        _check_beside(model, PEFT_TYPE, directory)
    beneath = lora_beside(directory)
    if beneath is not None:
        model = load_adapter(model, beneath, adapter_name=adapter_name, trainable=trainable)
    return PrefixModel.from_pretrained(
        model, directory, adapter_name, is_trainable=trainable, num_virtual_tokens=num_virtual_tokens
    )


def _load_beneath(model: PrefixModel, directory: Path, adapter_name: str, trainable: bool) -> PrefixModel:
    """LoRA and the like under a prefix that is there already."""
    if _kind(directory) in _SOFT_PROMPTS:
        _check_beside(model, _kind(directory), directory)
    model.base_model = load_adapter(model.base_model, directory, adapter_name=adapter_name, trainable=trainable)  # type: ignore[assignment]
    return model


def _check_beside(model: PeftModel, kind: str | None, directory: Path) -> None:
    there = {str(getattr(config.peft_type, "value", config.peft_type)) for config in model.peft_config.values()}
    if there != {kind}:
        raise ArgumentError(
            "{path}: a {kind} adapter cannot be put beside {there}; adapters of one kind go together, and a prefix "
            "with LoRA",
            path=directory,
            kind=str(kind),
            there=", ".join(sorted(there)),
        )


def _check_not_merged(base: str, directory: Path) -> None:
    """Raises CheckpointError if `softlaunch merge` has put this adapter into the base already."""
    record, weights = Path(base) / MERGE_FILE, directory / WEIGHTS_FILE
    if not (record.is_file() and weights.is_file()):
        return
    if read_json(record).get("adapter_sha256") == sha256(weights):
        raise CheckpointError(
            "{path}: this adapter is merged into {base} already, and would work twice: use that model without it, or "
            "load it on the base it was made for",
            path=directory,
            base=base,
        )


def _kind(directory: Path) -> str | None:
    """`peft_type` of an adapter directory; None without a configuration."""
    file = directory / CONFIG_FILE
    if not file.is_file():
        return None
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["peft_type"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError("{file}: the file is damaged: {error}", file=file, error=repr(error)) from error

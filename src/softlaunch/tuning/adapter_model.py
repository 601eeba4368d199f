"""A base model with PEFT's own adapters in it (LoRA, rsLoRA, DoRA, IA3), as runs need it."""

import json
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, PeftModelForCausalLM
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils.other import ModulesToSaveWrapper
from safetensors import SafetensorError
from transformers import PreTrainedModel

from softlaunch.errors import ArgumentError, CheckpointError
from softlaunch.files import write_json
from softlaunch.messages import say
from softlaunch.run_directory import BASE_FILE, CONFIG_FILE
from softlaunch.tuning.fingerprint import fingerprint, num_differences


class FingerprintedModel(PeftModel):
    """A `peft.PeftModel` whose adapters know their base: saved with its fingerprint, refused on another.

    A directory that it writes holds PEFT's two files, which stock PEFT loads, and `softlaunch.json`.
    """

    def __init__(self, model: PreTrainedModel, peft_config: PeftConfig, adapter_name: str = "default", **kwargs: Any):
        base_fingerprint = fingerprint(model)  # before layers are put into it
        peft_config.base_model_name_or_path = peft_config.base_model_name_or_path or model.name_or_path
        super().__init__(model, peft_config, adapter_name, **kwargs)
        self.base_fingerprint = base_fingerprint
        self._in_float32(adapter_name)

    def _in_float32(self, adapter_name: str) -> None:
        """Make whole layers that train (`modules_to_save`) float32, as PEFT does with its own, in any base."""
        for wrapper in self.modules():
            if isinstance(wrapper, ModulesToSaveWrapper) and adapter_name in wrapper.modules_to_save:
                layer = wrapper.modules_to_save[adapter_name]
                layer.to(torch.float32)
                layer.register_forward_pre_hook(_to_float32)
                layer.register_forward_hook(partial(_to_dtype, next(wrapper.original_module.parameters()).dtype))

    def delete_adapter(self, adapter_name: str) -> None:
        """As PEFT's; raises ArgumentError for a name that there is not, and for the only adapter."""
        require_adapter(adapter_name, self.peft_config)
        if len(self.peft_config) == 1:
            raise ArgumentError("{name!r} is the only adapter; unload() returns the base without it", name=adapter_name)
        super().delete_adapter(adapter_name)

    def create_or_update_model_card(self, output_dir: str) -> None:
        """No card: the directory holds what was trained and nothing else."""

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | Path,
        state_dict: dict[str, Any] | None = None,
        is_main_process: bool = True,
        selected_adapters: list[str] | None = None,
        **_: Any,
    ) -> None:
        """Write `default` into `save_directory`, others into folders of their names, in float32.

        `state_dict` holds the trained tensors where this process does not have them all (ZeRO-3).
        """
        if not is_main_process:
            return
        names = selected_adapters or list(self.peft_config)
        self._write(Path(save_directory), names, state_dict)
        for name in names:
            folder = Path(save_directory) / ("" if name == "default" else name)
            write_base(folder, self.base_fingerprint, str(self.name_or_path))

    def _write(self, directory: Path, names: list[str], state_dict: dict[str, Any] | None) -> None:
        # PEFT would look at the hub for the size of the vocabulary unless it is told about embeddings
        super().save_pretrained(
            str(directory), selected_adapters=names, state_dict=state_dict, save_embedding_layers=False
        )

    def load_adapter(  # type: ignore[override]
        self, model_id: str | Path, adapter_name: str, is_trainable: bool = False, **_: Any
    ) -> None:
        """Read an adapter directory into `adapter_name`, new or existing; trainability of an existing one is kept.

        Raises CheckpointError when it is broken or was made for another base.
        """
        directory = Path(model_id)
        check_base(directory, self.base_fingerprint, self.name_or_path)
        training = self.training
        try:
            self._read(directory, adapter_name, is_trainable)
        except (OSError, RuntimeError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise does_not_fit(directory, error) from error
        self.train(training)

    def _read(self, directory: Path, adapter_name: str, is_trainable: bool) -> None:
        is_new = adapter_name not in self.peft_config
        result = super().load_adapter(str(directory), adapter_name, is_trainable=is_trainable, torch_device="cpu")
        if is_new:
            self._in_float32(adapter_name)
        missing = [key for key in result.missing_keys if adapter_name in key.split(".")]  # PEFT looks for a substring
        if missing or result.unexpected_keys:
            raise ValueError(
                say(
                    "{missing} tensors are missing {first_missing}, {unexpected} have no place {first_unexpected}",
                    missing=len(missing),
                    first_missing=missing[:2],
                    unexpected=len(result.unexpected_keys),
                    first_unexpected=result.unexpected_keys[:2],
                )
            )


class AdapterModel(FingerprintedModel, PeftModelForCausalLM):
    """A causal language model with PEFT's own adapters."""


def require_adapter(name: str, names: Iterable[str]) -> None:
    """Raises ArgumentError if `name` is not among the `names` of a model's adapters."""
    there = sorted(set(names))
    if name not in there:
        raise ArgumentError("there is no adapter named {name!r}; there are {names}", name=name, names=", ".join(there))


def _to_float32(layer: torch.nn.Module, inputs: tuple) -> tuple:
    dtype = next(layer.parameters()).dtype  # which DeepSpeed changes in half precision
    return tuple(value.to(dtype) if value.is_floating_point() else value for value in inputs)


def _to_dtype(dtype: torch.dtype, layer: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
    return output.to(dtype)


def read_config(directory: Path, *, trainable: bool) -> PeftConfig:
    """PEFT's configuration object for `adapter_config.json`; raises CheckpointError for one that PEFT does not know."""
    try:
        written = json.loads((directory / CONFIG_FILE).read_text(encoding="utf-8"))
        config = PEFT_TYPE_TO_CONFIG_MAPPING[written["peft_type"]].from_pretrained(str(directory))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            "{file}: this is no configuration of an adapter that PEFT knows: {error}",
            file=directory / CONFIG_FILE,
            error=repr(error),
        ) from error
    config.inference_mode = not trainable
    return config


def write_base(directory: Path, found: list[float], name: str) -> None:
    """Write down beside an adapter which base it is for, as `check_base` reads it."""
    base = {"base_model_name_or_path": name, "base_fingerprint": found}
    write_json(directory / BASE_FILE, base)


def check_base(directory: Path, found: list[float], name: str) -> None:
    """Raise CheckpointError if the adapter says that it was made for another base than the one of this fingerprint."""
    file = directory / BASE_FILE
    if not file.is_file():  # another program's adapter: the shapes alone can tell
        return
    try:
        base = json.loads(file.read_text(encoding="utf-8"))
        differences, compared = num_differences(base["base_fingerprint"], found)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError("{file}: the file is damaged: {error}", file=file, error=repr(error)) from error
    if differences:
        raise CheckpointError(
            "{path}: the adapter was trained on another base: expected {expected}, found {found}, whose weights differ "
            "in {differences} of {compared} numbers compared; load it on the base it was made for",
            path=directory,
            expected=base["base_model_name_or_path"],
            found=name,
            differences=differences,
            compared=compared,
        )


def does_not_fit(directory: Path, error: Exception) -> CheckpointError:
    """The error for an adapter whose tensors and layers are not those of the base."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    mismatches = [line for line in lines if line.startswith("size mismatch")] or lines or [repr(error)]
    return CheckpointError(
        "{path}: the adapter does not fit this base, it is broken or was made for another architecture: {error}",
        path=directory,
        error=mismatches[0],
    )

"""A frozen encoder under a trained head, and a prefix (P-Tuning v2) with a head.

The head is trained where it stands in the base: it was made for this run, nobody else uses it. A model of either kind
therefore bears one adapter.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from softlaunch.errors import CheckpointError
from softlaunch.run_directory import WEIGHTS_FILE
from softlaunch.tuning.adapter_model import does_not_fit, write_base
from softlaunch.tuning.fingerprint import fingerprint
from softlaunch.tuning.prefix_encoder import PrefixConfig
from softlaunch.tuning.prefix_model import PrefixModel

HEAD_TYPE = "HEAD"
HEAD_FILE = "head.safetensors"  # beside a prefix


@dataclass
class HeadConfig(PeftConfig):
    """Which modules of the base are the head; the content of `adapter_config.json`."""

    modules_to_save: list[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = HEAD_TYPE

    @property
    def is_prompt_learning(self) -> bool:
        """Nothing is injected into the base: what PEFT means by prompt learning."""
        return True


class HeadModel(PeftModel):
    """A frozen encoder whose head trains. Trainer, Accelerate and the hub see a PEFT model."""

    def __init__(self, model: PreTrainedModel, peft_config: HeadConfig, adapter_name: str = "default", **_: Any):
        self.base_fingerprint = fingerprint(model)
        model.requires_grad_(False)
        super().__init__(model, peft_config, adapter_name)

    @property
    def head(self) -> list[str]:
        """The paths of the head's modules in the base."""
        return cast(HeadConfig, self.peft_config["default"]).modules_to_save or []

    def add_adapter(self, adapter_name: str, peft_config: HeadConfig, **_: Any) -> None:  # type: ignore[override]
        """Take the base's head as the one adapter that this model bears."""
        base = cast(PreTrainedModel, self.base_model)
        peft_config.base_model_name_or_path = peft_config.base_model_name_or_path or base.name_or_path
        self.peft_config[adapter_name] = peft_config
        train_head(base, peft_config.modules_to_save or [], not peft_config.inference_mode)

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | Path, state_dict: dict[str, torch.Tensor] | None = None, **_: Any
    ) -> None:
        """Write `adapter_config.json` and the head's tensors, float32; `state_dict` as in `PrefixModel`."""
        directory = Path(save_directory)
        directory.mkdir(parents=True, exist_ok=True)
        self.peft_config["default"].save_pretrained(str(directory))
        write_base(directory, self.base_fingerprint, str(cast(PreTrainedModel, self.base_model).name_or_path))
        write_head(directory / WEIGHTS_FILE, self.base_model, self.head, state_dict)

    def load_adapter(self, model_id: str | Path, adapter_name: str, is_trainable: bool = False, **_: Any) -> None:  # type: ignore[override]
        """Read the head that `save_pretrained` wrote; raises CheckpointError when it does not fit."""
        read_head(Path(model_id) / WEIGHTS_FILE, self.base_model, self.head)


class PrefixClassifier(PrefixModel):
    """A prefix on an encoder whose head trains with it; the head lies in `head.safetensors` beside the prefix."""

    def add_adapter(self, adapter_name: str, peft_config: PrefixConfig, **kwargs: Any) -> None:  # type: ignore[override]
        """Add the prefix, and train the base's head with it."""
        super().add_adapter(adapter_name, peft_config, **kwargs)
        train_head(self.get_base_model(), peft_config.modules_to_save or [], not peft_config.inference_mode)

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | Path,
        state_dict: dict[str, torch.Tensor] | None = None,
        is_main_process: bool = True,
        **kwargs: Any,
    ) -> None:
        """As PrefixModel's, with the head."""
        super().save_pretrained(save_directory, state_dict, is_main_process, **kwargs)
        if is_main_process:
            modules = cast(PrefixConfig, self.peft_config["default"]).modules_to_save or []
            write_head(Path(save_directory) / HEAD_FILE, self.get_base_model(), modules, state_dict)

    @classmethod
    def from_pretrained(cls, model: Any, model_id: str | Path, *args: Any, **kwargs: Any) -> "PrefixClassifier":  # type: ignore[override]
        """As PrefixModel's, with the head."""
        tuned = cast(PrefixClassifier, super().from_pretrained(model, model_id, *args, **kwargs))
        tuned._read_head(model_id)
        return tuned

    def load_adapter(self, model_id: str | Path, adapter_name: str, is_trainable: bool = False, **kwargs: Any) -> None:  # type: ignore[override]
        """As PrefixModel's, with the head."""
        super().load_adapter(model_id, adapter_name, is_trainable, **kwargs)
        self._read_head(model_id)

    def _read_head(self, directory: str | Path) -> None:
        modules = cast(PrefixConfig, self.peft_config["default"]).modules_to_save or []
        read_head(Path(directory) / HEAD_FILE, self.get_base_model(), modules)


def train_head(base: nn.Module, modules: Sequence[str], trainable: bool) -> None:
    """Make the modules of these paths trainable, or freeze them."""
    for path in modules:
        base.get_submodule(path).requires_grad_(trainable)


def write_head(file: Path, base: nn.Module, modules: Sequence[str], state_dict: dict[str, torch.Tensor] | None) -> None:
    """Write the parameters of these modules under their names in the base, float32. `state_dict`: see `read_head`'s
    callers; its names have `base_model.` in front.
    """
    tensors = {}
    for name, parameter in _parameters(base, modules).items():
        tensor = parameter if state_dict is None else state_dict[f"base_model.{name}"]
        tensors[name] = tensor.detach().float().cpu().contiguous()
    save_file(tensors, file, metadata={"format": "pt"})


@torch.no_grad()
def read_head(file: Path, base: nn.Module, modules: Sequence[str]) -> None:
    """Put what `write_head` wrote into these modules; raises CheckpointError when it is broken or does not fit."""
    try:
        tensors, parameters = load_file(file), _parameters(base, modules)
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError("{path}: the head cannot be read: {error}", path=file, error=error) from error
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    expected = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    if found != expected:
        raise does_not_fit(file.parent, ValueError(f"{found} ≠ {expected}"))
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])


def _parameters(base: nn.Module, modules: Sequence[str]) -> dict[str, nn.Parameter]:
    return {
        f"{path}.{name}": parameter
        for path in modules
        for name, parameter in base.get_submodule(path).named_parameters()
    }

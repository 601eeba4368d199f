"""Every tuning method on an encoder with a head: how a classifier begins, what of it is saved, how it comes back.

A saved classifier is a directory with what was trained and `config.json`, whose `id2label` names the classes and whose
`softlaunch` holds `ClassifierSettings`: enough to use it again with nothing but the base.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftConfig, PeftModel, PeftModelForSequenceClassification, PeftType
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from softlaunch.arguments import TuningArguments
from softlaunch.arguments.defaults import NUM_TRAINED_LAYERS
from softlaunch.errors import ArgumentError, CheckpointError
from softlaunch.run_directory import CONFIG_FILE, WEIGHTS_FILE
from softlaunch.tuning.adapter_model import FingerprintedModel, check_base, read_config
from softlaunch.tuning.fingerprint import fingerprint
from softlaunch.tuning.from_arguments import ia3_options, lora_options, p_tuning_options
from softlaunch.tuning.full import train_all, train_last_layers
from softlaunch.tuning.head import HEAD_TYPE, HeadConfig, HeadModel, PrefixClassifier, train_head
from softlaunch.tuning.peft_methods import (
    ia3_config,
    lora_config,
    p_tuning_config,
    prompt_tuning_config,
    require_length,
)
from softlaunch.tuning.prefix import add_prefix
from softlaunch.tuning.prefix_encoder import PEFT_TYPE

METHODS = ("lora", "full", "head", "p_tuning_v2", "prompt_tuning", "p_tuning", "ia3", "freeze")
WHOLE_MODELS = ("full", "freeze")  # what they leave is a model, not an adapter
SETTINGS = "softlaunch"

_TASK = "SEQ_CLS"
_ENCODER = "prompt_encoder."  # P-tuning's own tensors, beside the `prompt_embeddings` that PEFT reads


@dataclass(frozen=True)
class ClassifierSettings:
    """What is needed to use a saved classifier: method, base, head, the length of texts, whether they are pairs."""

    method: str
    base: str
    max_length: int
    pairs: bool
    head: list[str]


class AdapterClassifier(FingerprintedModel, PeftModelForSequenceClassification):
    """An encoder with one of PEFT's own adapters, whose head trains and is saved with it.

    PEFT saves what a P-tuning encoder computes; the encoder itself is saved too, to go on training from it.
    """

    def _write(self, directory: Path, names: list[str], state_dict: dict[str, Any] | None) -> None:
        super()._write(directory, names, state_dict)
        if self._has_encoder():
            start = "prompt_encoder.default."
            everything = self.state_dict() if state_dict is None else state_dict
            encoder = {_ENCODER + k.removeprefix(start): v for k, v in everything.items() if k.startswith(start)}
            tensors = {**load_file(directory / WEIGHTS_FILE), **encoder}
            tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in tensors.items()}
            save_file(tensors, directory / WEIGHTS_FILE, metadata={"format": "pt"})

    def _read(self, directory: Path, adapter_name: str, is_trainable: bool) -> None:
        if not self.active_peft_config.is_prompt_learning:
            super()._read(directory, adapter_name, is_trainable)
            return
        # The result names all of the base as missing and the encoder as unexpected: shapes are checked all the same
        super(FingerprintedModel, self).load_adapter(
            str(directory), adapter_name, is_trainable=is_trainable, torch_device="cpu"
        )
        if self._has_encoder():
            tensors = load_file(directory / WEIGHTS_FILE)
            encoder = {k.removeprefix(_ENCODER): v for k, v in tensors.items() if k.startswith(_ENCODER)}
            cast(Any, self.prompt_encoder[adapter_name]).load_state_dict(encoder)

    def _has_encoder(self) -> bool:
        config = self.active_peft_config
        return config.peft_type == PeftType.P_TUNING and not config.inference_mode


def add_method(
    model: PreTrainedModel, head: Sequence[str], method: str, tuning: TuningArguments
) -> PreTrainedModel | PeftModel:
    """`model` as `method` (one of METHODS) trains it: only the adapter and the modules `head` are trainable, float32.

    Raises ArgumentError for options that do not suit the model.
    """
    if method == "full":
        return train_all(model)
    if method == "freeze":
        train_last_layers(model, tuning.freeze_trainable_layers or NUM_TRAINED_LAYERS)
        train_head(model, head, True)
        return model
    if method == "head":
        return HeadModel(model, HeadConfig(modules_to_save=list(head)))
    if method == "p_tuning_v2":
        if tuning.prefix_init == "text":
            raise ArgumentError("prefix_init text needs a causal model, and this is an encoder: take random or zero")
        return add_prefix(
            model,
            num_virtual_tokens=require_length(tuning.pre_seq_len),
            initialisation=tuning.prefix_init,  # type: ignore[arg-type]
            projection=tuning.prefix_projection,
            dropout=tuning.prefix_dropout,
            head=head,
        )
    return AdapterClassifier(model, _peft_config(model, head, method, tuning))


def save_classifier(
    model: Any, settings: ClassifierSettings, directory: str | Path, state_dict: dict[str, torch.Tensor] | None = None
) -> None:
    """Write a directory that `load_trained` and stock transformers or PEFT read; see `trained_tensors`."""
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    setattr(base.config, SETTINGS, asdict(settings))
    model.save_pretrained(str(directory), state_dict=state_dict)
    base.config.save_pretrained(str(directory))


def read_settings(directory: str | Path) -> tuple[ClassifierSettings, list[str]] | None:
    """The settings of a saved classifier and its classes in their order; None where there is none."""
    file = Path(directory) / "config.json"
    if not file.is_file():
        return None
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        if SETTINGS not in config:
            return None
        names = {int(number): name for number, name in config["id2label"].items()}
        return ClassifierSettings(**config[SETTINGS]), [names[number] for number in range(len(names))]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError("{file}: the file is damaged: {error}", file=file, error=repr(error)) from error


def find_classifier(path: str | Path) -> Path | None:
    """The directory of the classifier that a run left: `path` itself, its `adapter/` or its `model/`, the newer one."""
    found = [folder for folder in (Path(path), Path(path) / "adapter", Path(path) / "model") if read_settings(folder)]
    return max(found, key=lambda folder: (folder / "config.json").stat().st_mtime, default=None)


def load_trained(base: PreTrainedModel, directory: str | Path, *, trainable: bool = False) -> PeftModel:
    """Put the adapter and the head that lie in `directory` on their base, which has a head of as many classes.

    Raises CheckpointError when they were made for another base or are broken.
    """
    directory = Path(directory)
    check_base(directory, fingerprint(base), str(base.name_or_path))
    try:
        written = json.loads((directory / CONFIG_FILE).read_text(encoding="utf-8"))
        kind = written["peft_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            "{file}: the file is damaged: {error}", file=directory / CONFIG_FILE, error=repr(error)
        ) from error
    if kind == PEFT_TYPE:
        return PrefixClassifier.from_pretrained(base, directory, is_trainable=trainable)
    if kind == HEAD_TYPE:
        config = HeadConfig(modules_to_save=written["modules_to_save"], inference_mode=not trainable)
        tuned: PeftModel = HeadModel(base, config)
    else:
        tuned = AdapterClassifier(base, read_config(directory, trainable=trainable))
    tuned.load_adapter(directory, "default", is_trainable=trainable)
    return tuned


def _peft_config(model: PreTrainedModel, head: Sequence[str], method: str, tuning: TuningArguments) -> PeftConfig:
    trained = [*head, *(tuning.modules_to_save or [])]
    if method == "lora":
        return lora_config(model, _TASK, **lora_options(tuning) | {"modules_to_save": trained})
    if method == "ia3":
        return ia3_config(model, _TASK, **ia3_options(tuning) | {"modules_to_save": trained})
    config: PeftConfig
    if method == "prompt_tuning":
        if tuning.prompt_init == "text":
            raise ArgumentError(
                "prompt_init text needs a causal model, and this is an encoder: take random or vocabulary"
            )
        from_vocabulary = tuning.prompt_init == "vocabulary"
        config = prompt_tuning_config(
            model, _TASK, num_virtual_tokens=tuning.pre_seq_len, from_vocabulary=from_vocabulary
        )
    else:
        config = p_tuning_config(model, _TASK, **p_tuning_options(tuning))
    cast(Any, config).modules_to_save = list(head)
    return config

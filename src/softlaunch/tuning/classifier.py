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
from peft import (
    IA3Config,
    LoraConfig,
    PeftConfig,
    PeftModel,
    PeftModelForSequenceClassification,
    PeftType,
    PromptEncoderConfig,
    PromptTuningConfig,
)
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from softlaunch.arguments import TuningArguments
from softlaunch.errors import ArgumentError, CheckpointError
from softlaunch.tuning.adapter_model import CONFIG_FILE, AdapterFiles, check_base, read_config
from softlaunch.tuning.fingerprint import fingerprint
from softlaunch.tuning.full import train_all, train_last_layers
from softlaunch.tuning.head import HEAD_TYPE, HeadConfig, HeadModel, PrefixClassifier, train_head
from softlaunch.tuning.prefix import add_prefix
from softlaunch.tuning.prefix_encoder import PEFT_TYPE
from softlaunch.tuning.targets import find_targets

METHODS = ("lora", "full", "head", "p_tuning_v2", "prompt_tuning", "p_tuning", "ia3", "freeze")
WHOLE_MODELS = ("full", "freeze")  # what they leave is a model, not an adapter
SETTINGS = "softlaunch"

_NUM_TRAINED_LAYERS = 2
_WEIGHTS_FILE = "adapter_model.safetensors"
_ENCODER = "prompt_encoder."  # P-tuning's own tensors, beside the `prompt_embeddings` that PEFT reads


@dataclass(frozen=True)
class ClassifierSettings:
    """What is needed to use a saved classifier: method, base, head, the length of texts, whether they are pairs."""

    method: str
    base: str
    max_length: int
    pairs: bool
    head: list[str]


class AdapterClassifier(AdapterFiles, PeftModelForSequenceClassification):
    """An encoder with one of PEFT's own adapters, whose head trains and is saved with it.

    PEFT saves what a P-tuning encoder computes; the encoder itself is saved too, to go on training from it.
    """

    def _write(self, directory: Path, names: list[str], state_dict: dict[str, Any] | None) -> None:
        super()._write(directory, names, state_dict)
        if self._has_encoder():
            start = "prompt_encoder.default."
            everything = self.state_dict() if state_dict is None else state_dict
            encoder = {_ENCODER + k.removeprefix(start): v for k, v in everything.items() if k.startswith(start)}
            tensors = {**load_file(directory / _WEIGHTS_FILE), **encoder}
            tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in tensors.items()}
            save_file(tensors, directory / _WEIGHTS_FILE, metadata={"format": "pt"})

    def _read(self, directory: Path, adapter_name: str, is_trainable: bool) -> None:
        if not self.active_peft_config.is_prompt_learning:
            super()._read(directory, adapter_name, is_trainable)
            return
        # The result names all of the base as missing and the encoder as unexpected: shapes are checked all the same
        super(AdapterFiles, self).load_adapter(
            str(directory), adapter_name, is_trainable=is_trainable, torch_device="cpu"
        )
        if self._has_encoder():
            tensors = load_file(directory / _WEIGHTS_FILE)
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
        train_last_layers(model, tuning.freeze_trainable_layers or _NUM_TRAINED_LAYERS)
        train_head(model, head, True)
        return model
    if method == "head":
        return HeadModel(model, HeadConfig(modules_to_save=list(head)))
    if method == "p_tuning_v2":
        if tuning.prefix_init == "text":
            raise ArgumentError("prefix_init text needs a causal model, and this is an encoder: take random or zero")
        return add_prefix(
            model,
            num_virtual_tokens=_num_virtual_tokens(tuning),
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
    if method == "lora":
        return LoraConfig(
            task_type="SEQ_CLS",
            r=tuning.lora_r or 8,
            lora_alpha=tuning.lora_alpha or 32,  # type: ignore[arg-type]
            lora_dropout=tuning.lora_dropout,
            target_modules=find_targets(model, tuning.lora_target_modules, "lora"),
            modules_to_save=[*head, *(tuning.modules_to_save or [])],
            use_rslora=tuning.use_rslora,
            use_dora=tuning.use_dora,
        )
    if method == "ia3":
        return IA3Config(
            task_type="SEQ_CLS",
            target_modules=find_targets(model, tuning.ia3_target_modules, "ia3"),
            feedforward_modules=find_targets(model, tuning.ia3_feedforward_modules, "ia3 feed-forward"),
            modules_to_save=[*head, *(tuning.modules_to_save or [])],
        )
    shape: dict[str, Any] = {
        "task_type": "SEQ_CLS",
        "num_virtual_tokens": _num_virtual_tokens(tuning),
        "token_dim": model.config.hidden_size,
        "num_layers": model.config.num_hidden_layers,
        "num_attention_heads": model.config.num_attention_heads,
        "num_transformer_submodules": 1,
        "modules_to_save": list(head),
    }
    if method == "prompt_tuning":
        return PromptTuningConfig(
            prompt_tuning_init="SAMPLE_VOCAB" if tuning.prompt_init == "vocabulary" else "RANDOM", **shape
        )
    return PromptEncoderConfig(
        encoder_reparameterization_type=tuning.encoder_type.upper(),
        encoder_hidden_size=tuning.encoder_hidden_size or model.config.hidden_size,
        encoder_num_layers=tuning.encoder_num_layers,
        encoder_dropout=tuning.encoder_dropout,
        **shape,
    )


def _num_virtual_tokens(tuning: TuningArguments) -> int:
    if tuning.pre_seq_len is None:
        raise ArgumentError("pre_seq_len is not set: give the number of virtual tokens, 8 to 100 as a rule")
    return tuning.pre_seq_len

"""A prefix from one adapter format into another; see `formats` for what they are."""

from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedModel

from softlaunch.errors import CheckpointError
from softlaunch.messages import say
from softlaunch.tuning import formats
from softlaunch.tuning.prefix_encoder import PrefixEncoder
from softlaunch.tuning.prefix_model import lora_beside

PrefixFormat = Literal["softlaunch", "peft", "thudm-prefix"]

_DROPOUT = 0.1  # of the original scripts, which do not write it down
_TOLERANCE = 1e-4  # turning keys there and back in float32


def convert_prefix(model: PreTrainedModel, source: Path, target: Path, to: PrefixFormat) -> list[str]:
    """Write the prefix in `source` into the existing directory `target`; returns notes on what the target cannot hold.

    `model` is the base, whose weights are not used (`load_skeleton`). What was written is read back: its keys and
    values are those of the source, bit for bit where PEFT's format is not involved, else up to float32 rounding.

    Raises CheckpointError when the prefix is broken or for another shape of model, when LoRA or a head was trained with
    it, and when it is read back otherwise.
    """
    saved = formats.read_prefix(model, source, check_weights=False)
    _require_alone(saved, source)
    encoder = PrefixEncoder(saved.config)
    encoder.load_state_dict(saved.tensors)
    if to == "softlaunch":
        saved.config.base_model_name_or_path = saved.config.base_model_name_or_path or model.name_or_path
        formats.write_prefix(saved.tensors, saved.config, target)
    elif to == "peft":
        formats.write_peft(model, encoder, target)
    else:
        _require_chatglm(model, source)
        formats.write_original(encoder, target)
    _require_equal(model, encoder, target)
    return _notes(saved, to)


def _require_alone(saved: formats.SavedPrefix, source: Path) -> None:
    lora, head = lora_beside(source), saved.config.modules_to_save
    if lora is not None:
        raise CheckpointError(
            "{path}: with this prefix a LoRA was trained ({lora}), which would be lost: without it the prefix answers "
            "otherwise. Load both on the base with softlaunch.tuning.load_adapter, or train a prefix alone.",
            path=source,
            lora=lora,
        )
    if head:
        raise CheckpointError(
            "{path}: with this prefix the head of a classifier was trained ({head}), which would be lost. Use it "
            "on its base with recipes/classify.py, or train a LoRA, which PEFT's format holds together with the head.",
            path=source,
            head=", ".join(head),
        )


def _require_chatglm(model: PreTrainedModel, source: Path) -> None:
    if model.config.model_type != "glm":
        raise CheckpointError(
            "{path}: the original scripts tune ChatGLM2, whose layout fits ChatGLM3 and GLM-4 too; this prefix is for "
            "{kind}, which they cannot load. Convert it to peft or softlaunch.",
            path=source,
            kind=model.config.model_type,
        )


@torch.no_grad()
def _require_equal(model: PreTrainedModel, encoder: PrefixEncoder, target: Path) -> None:
    written = formats.read_prefix(model, target, check_weights=False)
    again = PrefixEncoder(written.config)
    again.load_state_dict(written.tensors)
    difference = (again() - encoder()).abs().max().item()
    if difference > _TOLERANCE * max(1.0, encoder().abs().max().item()):
        raise CheckpointError(
            "{path}: read back, keys and values differ by {difference:.1e}; nothing was kept",
            path=target,
            difference=difference,
        )


def _notes(saved: formats.SavedPrefix, to: PrefixFormat) -> list[str]:
    config, notes = saved.config, []
    if to == "peft" and config.prefix_projection:
        notes.append(say("The projection was computed: PEFT's file holds its result and can be trained on without it."))
    if to != "softlaunch" and config.base_fingerprint is not None:
        notes.append(say("The format has no place for the base's fingerprint: a wrong base will not be noticed."))
    if to == "softlaunch" and config.base_fingerprint is None:
        notes.append(
            say("The source has no fingerprint of its base: a wrong base of the same shape will not be noticed.")
        )
    dropout = 0.0 if to == "peft" else _DROPOUT
    if to != "softlaunch" and config.prefix_dropout != dropout:
        notes.append(
            say(
                "The format has no place for the prefix's dropout of {dropout}; trained further it gets {other}.",
                dropout=config.prefix_dropout,
                other=dropout,
            )
        )
    return notes

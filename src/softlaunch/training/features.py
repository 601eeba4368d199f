"""A frozen encoder is run once over every row; its head then trains on what came out.

The classifiers of transformers' encoders (BERT, RoBERTa, ELECTRA, DistilBERT, …) read the first token's hidden state
alone, through the pooler where there is one. That vector is the feature of a row: computed without gradients and
without dropout, in batches of like length, and kept on disk under a name made from the encoder's weights and the rows.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

import datasets
import torch
from safetensors.torch import load_file, save_file
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutputWithPooling

from softlaunch.arguments import TrainingArguments
from softlaunch.collective import every_process
from softlaunch.data.order import batches_of_process
from softlaunch.errors import ArgumentError
from softlaunch.messages import say
from softlaunch.tuning.head import HeadModel
from softlaunch.tuning.split import gathered, gathered_in_turn

logger = logging.getLogger(__name__)

_TOLERANCE = 1e-3  # of the logits of a few rows, whole model against features
_NUM_CHECKED = 4


class FeatureRows(torch.utils.data.Dataset):
    """Rows as their features. An item is the rows themselves and an index: `ClassCollator` takes a batch at once."""

    def __init__(self, features: torch.Tensor, rows: datasets.Dataset):
        self.features = features
        self.labels, self.row_ids = torch.tensor(rows["labels"][:]), torch.tensor(rows["row_id"][:])

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> tuple["FeatureRows", int]:
        return self, index

    def batch(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """`inputs_embeds` (batch, 1, hidden), `labels` and `row_id` (batch,)."""
        chosen = torch.tensor(indices)
        return {
            "inputs_embeds": self.features[chosen, None],
            "labels": self.labels[chosen],
            "row_id": self.row_ids[chosen],
        }


class ClassCollator:
    """Rows of token ids, padded to the longest of the batch, or rows of features."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        # else every batch is announced to be slower than it could be
        tokenizer.deprecation_warnings["Asking-to-pad-a-fast-tokenizer"] = True
        self.pad = DataCollatorWithPadding(tokenizer)

    def __call__(self, rows: Sequence[Any]) -> dict[str, torch.Tensor]:
        if isinstance(rows[0], tuple):
            return cast(FeatureRows, rows[0][0]).batch([index for _, index in rows])
        return dict(self.pad(list(rows)))


def encode_once(
    tuned: HeadModel,
    steps: dict[str, datasets.Dataset],
    tokenizer: PreTrainedTokenizerBase,
    arguments: TrainingArguments,
    *,
    overwrite_cache: bool = False,
) -> dict[str, FeatureRows]:
    """The rows of every step as features, and `tuned` from now on taking such rows in place of token ids.

    All processes call it; each encodes its share of the rows that no cache holds. Raises ArgumentError for a model
    whose classifier reads more than the first token.
    """
    tuned.to(arguments.device).eval()
    model = cast(PreTrainedModel, tuned.get_base_model())
    collate, directory = ClassCollator(tokenizer), Path(datasets.config.HF_DATASETS_CACHE) / "softlaunch" / "features"
    weights = _digest_of_encoder(tuned)
    features, probe = {}, None
    for step, rows in steps.items():
        key = hashlib.sha256(json.dumps([weights, _precision(arguments), rows["input_ids"][:]]).encode()).hexdigest()[
            :32
        ]
        file = directory / f"{key}.safetensors"
        if overwrite_cache or not every_process(file.is_file()):
            found = _encode(model, rows, collate, arguments)
            if arguments.local_process_index == 0:
                _write(found, file)
            logger.info(
                say("{step}: {number:,} rows encoded once, kept in {file}", step=step, number=len(rows), file=file)
            )
        else:
            found = load_file(file)["features"]
            logger.info(
                say("{step}: {number:,} encoded rows taken from {file}", step=step, number=len(rows), file=file)
            )
        features[step] = FeatureRows(found, rows)
        probe = probe or (collate(rows.select(range(min(_NUM_CHECKED, len(rows)))).to_list()), found[:_NUM_CHECKED])
    assert probe is not None
    _read_features(model, *probe, arguments)
    return features


@torch.no_grad()
def _encode(
    model: PreTrainedModel, rows: datasets.Dataset, collate: Callable, arguments: TrainingArguments
) -> torch.Tensor:
    """(rows, hidden), float32, on the CPU of every process."""
    lengths = [len(ids) for ids in rows["input_ids"]]
    size, index, world = arguments.per_device_eval_batch_size, arguments.process_index, arguments.world_size
    batches, num_rounds = batches_of_process(lengths, size, index, world)
    features = torch.zeros(len(rows), model.config.hidden_size)
    with gathered_in_turn(model), _autocast(arguments):
        for number in range(num_rounds):  # under ZeRO-3 all processes gather together, those without rows too
            batch = batches[number] if number < len(batches) else [0]
            inputs = _inputs(collate(rows.select(batch).to_list()), arguments)
            hidden = cast(Any, model.base_model)(**inputs).last_hidden_state[:, 0].float().cpu()
            if number < len(batches):
                features[batch] = hidden
    if world > 1:  # every row is zero but on one process
        for part in features.split(1 << 16):
            shared = part.to(arguments.device)
            torch.distributed.all_reduce(shared)
            part.copy_(shared)
    return features


@torch.no_grad()
def _read_features(
    model: PreTrainedModel, inputs: dict[str, torch.Tensor], features: torch.Tensor, arguments: TrainingArguments
) -> None:
    """Let `model` take features as `inputs_embeds`, after a look whether its logits are then the same."""
    encoder, device = cast(Any, model.base_model), arguments.device
    with gathered_in_turn(model), _autocast(arguments):
        expected = cast(Any, model)(**_inputs(inputs, arguments)).logits.float()

        def forward(*_: Any, inputs_embeds: torch.Tensor, **__: Any) -> BaseModelOutputWithPooling:
            pooler = getattr(encoder, "pooler", None)
            pooled = None if pooler is None else pooler(inputs_embeds)
            return BaseModelOutputWithPooling(last_hidden_state=inputs_embeds, pooler_output=pooled)

        encoder.forward = forward
        found = cast(Any, model)(inputs_embeds=features[:, None].to(device)).logits.float()
    if (found - expected).abs().max() > _TOLERANCE * (1 + expected.abs().max()):
        raise ArgumentError(
            "tuning head encodes every row once, and the classifier of {model} reads more than the first token: take "
            "freeze with freeze_trainable_layers 1, or lora",
            model=type(model).__name__,
        )


def _inputs(batch: dict[str, torch.Tensor], arguments: TrainingArguments) -> dict[str, torch.Tensor]:
    return {name: t.to(arguments.device) for name, t in batch.items() if name not in ("labels", "row_id")}


def _digest_of_encoder(tuned: HeadModel) -> str:
    """Of all weights but the head's, whatever has been trained of it."""
    model = cast(Any, tuned.get_base_model())
    head, digest = tuple(f"{path}." for path in tuned.head), hashlib.sha256(type(model).__name__.encode())
    for name, parameter in model.named_parameters():
        if not name.startswith(head):
            with gathered([parameter]) as (tensor,):
                digest.update(name.encode() + tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _precision(arguments: TrainingArguments) -> str:
    return "bfloat16" if arguments.bf16 else "float16" if arguments.fp16 else "float32"


def _autocast(arguments: TrainingArguments) -> AbstractContextManager:
    """As the Trainer computes."""
    dtype = getattr(torch, _precision(arguments))
    return torch.autocast(arguments.device.type, dtype=dtype, enabled=dtype != torch.float32)


def _write(features: torch.Tensor, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f"{file.name}.{os.getpid()}")
    save_file({"features": features}, temporary)
    temporary.replace(file)

"""Encoded rows to batches of int64 tensors, padded to their longest row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from softlaunch.data.encode import IGNORED_LABEL


@dataclass(frozen=True)
class TrainingCollator:
    """Pads on the right.

    Returns `input_ids`, `attention_mask` and `labels` (-100 where padded), each (batch, longest row), and `row_id`
    (batch,) if the rows have one.
    """

    pad_token_id: int

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        length = max(len(row["input_ids"]) for row in rows)
        return {
            "input_ids": _pad_right([row["input_ids"] for row in rows], self.pad_token_id, length),
            "attention_mask": _pad_right([[1] * len(row["input_ids"]) for row in rows], 0, length),
            "labels": _pad_right([row["labels"] for row in rows], IGNORED_LABEL, length),
            **_row_ids(rows),
        }


@dataclass(frozen=True)
class GenerationCollator:
    """Pads on the left, so that every prompt ends where its answer begins.

    Returns `input_ids` and `attention_mask`, each (batch, longest row), and `row_id` (batch,) if the rows have one.
    """

    pad_token_id: int

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        length = max(len(row["input_ids"]) for row in rows)
        padding = [length - len(row["input_ids"]) for row in rows]
        ids = [[self.pad_token_id] * n + list(row["input_ids"]) for n, row in zip(padding, rows, strict=True)]
        mask = [[0] * n + [1] * (length - n) for n in padding]
        return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask), **_row_ids(rows)}


def _pad_right(lists: Sequence[Sequence[int]], value: int, length: int) -> torch.Tensor:
    return torch.tensor([[*values, *[value] * (length - len(values))] for values in lists])


def _row_ids(rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    return {"row_id": torch.tensor([row["row_id"] for row in rows])} if "row_id" in rows[0] else {}

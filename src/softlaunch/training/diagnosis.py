"""Why a loss or a gradient is no number: found by looking at the labels, the weights, the precision and the rate."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from softlaunch.messages import say


@dataclass(frozen=True)
class Batch:
    """What a loss was computed from: the loss of every label token and its row in the batch, both (label tokens,).

    `row_ids` (batch,) are None where rows have none; `num_labels` is the number of label tokens in the whole optimizer
    step, over all processes.
    """

    nll: torch.Tensor
    rows: torch.Tensor
    row_ids: torch.Tensor | None
    num_labels: torch.Tensor | int

    def bad_rows(self) -> list[int]:
        """The ids of the rows whose own loss is not finite; all, if it is the whole that is not."""
        if self.row_ids is None:
            return []
        bad = self.rows[~torch.isfinite(self.nll.detach())].unique()
        return (self.row_ids[bad] if len(bad) else self.row_ids).tolist()


def loss_cause(model: nn.Module, batch: Batch, args: Any, *, at_start: bool) -> str:
    """In words, and what to do; `at_start` if it is the first loss of this start of the run."""
    if int(batch.num_labels) == 0:
        return say(
            "The cause: no row of this step has a token to learn from, all labels are masked. Look at the answers of "
            "these rows and at max_source_length and max_target_length"
        )
    if name := _first_not_finite(model, trained=True):
        if at_start:
            return say(
                "The cause: {name} is not finite before the first step. The adapter or checkpoint that training starts "
                "from is damaged: take an earlier one, or begin anew (restart)",
                name=name,
            )
        return say(
            "The cause: the step before has made {name} infinite or not a number. learning_rate {learning_rate:g} is "
            "too high: try a tenth of it",
            name=name,
            learning_rate=args.learning_rate,
        )
    if name := _first_not_finite(model, trained=False):
        return say(
            "The cause: the base model's {name} is not finite. Its checkpoint is damaged, or does not fit into this "
            "precision: use bf16, or dtype float32",
            name=name,
        )
    if _computes_in_float16(model, args):
        return say(
            "The cause: all weights are finite and the base model computes in float16, which ends at 65504: a value "
            "has gone beyond. Use bf16 where the hardware has it, else dtype float32 without fp16"
        )
    return say(
        "All weights are finite and there are labels, so values have grown until they overflowed. Most likely "
        "learning_rate {learning_rate:g} is too high: try a tenth of it",
        learning_rate=args.learning_rate,
    )


def gradient_cause(model: nn.Module, args: Any) -> str:
    """In words, and what to do."""
    names = [n for n, p in model.named_parameters() if p.grad is not None and not _is_finite(p.grad)]
    where = say("It is that of {name}. ", name=names[0]) if names else ""
    if _computes_in_float16(model, args):
        return where + say(
            "The likely cause: the base model computes in float16, which ends at 65504. Use bf16 where the hardware "
            "has it, else dtype float32 without fp16"
        )
    return where + say(
        "The likely cause: learning_rate {learning_rate:g} is too high: try a tenth of it",
        learning_rate=args.learning_rate,
    )


def _first_not_finite(model: nn.Module, *, trained: bool) -> str | None:
    named: Iterable[tuple[str, nn.Parameter]] = model.named_parameters()
    return next((n for n, p in named if p.requires_grad == trained and not _is_finite(p.detach())), None)


def _is_finite(tensor: torch.Tensor) -> bool:
    """Of this process's part, where the tensor is split."""
    local: Any = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    if hasattr(tensor, "ds_tensor") and not tensor.numel():
        local = tensor.ds_tensor
    return not local.is_floating_point() or bool(torch.isfinite(local).all())


def _computes_in_float16(model: nn.Module, args: Any) -> bool:
    return bool(args.fp16) or any(parameter.dtype == torch.float16 for parameter in model.parameters())

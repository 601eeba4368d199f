"""Stopping where training has gone wrong, on every process: loss or gradients that are no numbers, or stuck at 0."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from softlaunch.collective import several
from softlaunch.errors import UserError
from softlaunch.messages import say
from softlaunch.training.diagnosis import Batch, gradient_cause, loss_cause

MAX_SKIPPED_STEPS = 20  # float16's loss scale starts at 2**16 and halves: this many misses in a row are no start-up
MAX_ZERO_STEPS = 3  # one batch may be learnt by heart
_MAX_SHOWN = 20


class TrainingError(UserError):
    """Training has gone wrong in a way that more steps do not mend."""


class Guard(TrainerCallback):
    """Looks at every loss before its gradient is computed, and at the gradients right before the optimizer uses them.

    All processes stop together, with the rows of all of them. DeepSpeed keeps the gradients to itself, has taken its
    step by then, and leaves out one with gradients that are not finite in any precision.
    """

    def __init__(self, args: Any):
        self.args = args
        self.step: int | None = None  # the step that `row_ids` belong to
        self.row_ids: list[torch.Tensor] = []
        self.zero_loss_since: int | None = None
        self.num_zero_gradients = self.num_skipped = 0
        self.is_first_loss = True

    def check_loss(self, loss: torch.Tensor, batch: Batch, model: nn.Module, step: int) -> None:
        """Raise TrainingError on every process when `loss` (scalar) is not finite on any of them, or long 0 on all."""
        if step != self.step:
            self.step, self.row_ids = step, []
        if batch.row_ids is not None:
            self.row_ids.append(batch.row_ids)
        value = loss.detach()
        is_finite, is_zero = _on_all_processes(torch.stack([torch.isfinite(value), value == 0]))
        if not is_finite:
            bad = None if torch.isfinite(value) else batch.bad_rows()
            cause = "" if bad is None else loss_cause(model, batch, self.args, at_start=self.is_first_loss)
            rows, cause, loss_found = _of_all_processes(bad, cause, value.item())
            raise TrainingError(
                "the loss of step {step} is {loss} ({rows}). {cause}",
                step=step + 1,
                loss=loss_found,
                rows=rows,
                cause=cause,
            )
        self.is_first_loss = False
        self.zero_loss_since = None if not is_zero else step if self.zero_loss_since is None else self.zero_loss_since
        if self.zero_loss_since is not None and step - self.zero_loss_since + 1 >= MAX_ZERO_STEPS:
            rows, *_ = _of_all_processes(self._rows())
            raise TrainingError(
                "the loss has been exactly 0 for {steps} steps (now in {rows}): the model gives every label token a "
                "probability of 1, and there is nothing left to learn. Are all answers the same, or is learning_rate "
                "{learning_rate:g} so high that one answer is all that is left?",
                steps=MAX_ZERO_STEPS,
                rows=rows,
                learning_rate=self.args.learning_rate,
            )

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.args.deepspeed_plugin is not None:
            is_finite, is_zero = not kwargs["optimizer"].step_was_skipped, False
        else:
            is_finite, is_zero = _on_all_processes(_look_at_gradients(kwargs["model"]))
        self.num_skipped = 0 if is_finite else self.num_skipped + 1
        self.num_zero_gradients = self.num_zero_gradients + 1 if is_zero else 0
        may_skip = self.args.fp16 and self.num_skipped < MAX_SKIPPED_STEPS  # the loss scaler leaves such a step out
        if not is_finite and not may_skip:
            rows, cause, _ = _of_all_processes(self._rows(), gradient_cause(kwargs["model"], self.args))
            raise TrainingError(
                "the gradient of step {step} is not finite{many} although the loss is ({rows}). {cause}",
                step=state.global_step + 1,
                many=say(" for the {times}th time in a row", times=self.num_skipped) if self.args.fp16 else "",
                rows=rows,
                cause=cause,
            )
        if self.num_zero_gradients >= MAX_ZERO_STEPS:
            rows, *_ = _of_all_processes(self._rows())
            raise TrainingError(
                "all gradients have been exactly 0 for {steps} steps (now in {rows}): nothing is learnt. In float16 "
                "small gradients vanish: use bf16 or float32. Else learning_rate {learning_rate:g} is so high that the "
                "loss no longer depends on what is trained, or it never did",
                steps=MAX_ZERO_STEPS,
                rows=rows,
                learning_rate=self.args.learning_rate,
            )

    def _rows(self) -> list[int]:
        return [row for ids in self.row_ids for row in ids.tolist()]


def _look_at_gradients(model: nn.Module) -> torch.Tensor:
    """Bool (2,): whether all gradients are finite, and whether all are 0 (not so where there are none)."""
    found = [torch.stack([torch.isfinite(g).all(), ~g.any()]) for g in _gradients(model)]
    if not found:
        return torch.tensor([True, False], device=next(model.parameters()).device)
    return torch.stack([flags.to(found[0].device) for flags in found]).all(0)


def _gradients(model: nn.Module) -> Iterator[torch.Tensor]:
    for parameter in model.parameters():
        gradient = parameter.grad
        if gradient is not None:  # under FSDP2, this process's part of it
            yield gradient.to_local() if isinstance(gradient, DTensor) else gradient


def _on_all_processes(flags: torch.Tensor) -> list[bool]:
    """Bool (n,) to n answers: whether each flag is set on every process."""
    if several():
        flags = flags.to(torch.int32)
        torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MIN)
    return [bool(flag) for flag in flags.tolist()]


def _of_all_processes(row_ids: list[int] | None, cause: str = "", loss: float = 0.0) -> tuple[str, str, float]:
    """The rows of all processes in words, and the first cause that one of them has found, with its loss."""
    found: list[Any] = [(row_ids, cause, loss)]
    if several():
        found = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(found, (row_ids, cause, loss))
    rows = [row for ids, *_ in found for row in ids or ()]
    shown = ", ".join(str(row) for row in rows[:_MAX_SHOWN])
    if len(rows) > _MAX_SHOWN:
        words = say("rows {rows} and {more} more", rows=shown, more=len(rows) - _MAX_SHOWN)
    else:
        words = say("rows {rows}", rows=shown) if rows else say("rows without ids")
    _, cause, loss = next((one for one in found if one[1]), found[0])
    return words, cause, loss

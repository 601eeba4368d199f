"""Stopping at the first loss or gradient that is not a number, on every process, before the optimizer uses it."""

from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from softlaunch.collective import any_process
from softlaunch.errors import UserError
from softlaunch.messages import say

MAX_SKIPPED_STEPS = 20  # float16's loss scale starts at 2**16 and halves: this many misses in a row are no start-up


class NotFiniteError(UserError):
    """A loss or a gradient is infinite or not a number."""


def stop_if_not_finite(loss: torch.Tensor, row_ids: torch.Tensor | None, step: int) -> None:
    """Raise NotFiniteError on every process when `loss` (scalar) is not finite on any of them."""
    finite = bool(torch.isfinite(loss.detach()))
    if not any_process(not finite):
        return
    if finite:
        rows = say("other processes' rows")
    else:
        rows = say("this batch") if row_ids is None else say("rows {row_ids}", row_ids=row_ids.tolist())
    raise NotFiniteError(
        "the loss of step {step} is {loss} ({rows}). Likely causes: a learning rate that is too high, a base in "
        "float16 that overflows (use bfloat16 or float32), or rows whose labels are all cut off",
        step=step + 1,
        loss=loss.item(),
        rows=rows,
    )


class NonFiniteGradients(TrainerCallback):
    """Looks at the gradients right before the optimizer step.

    DeepSpeed keeps them to itself, has taken its step by then, and leaves out one with such gradients in any precision.
    """

    def __init__(self, skips_overflow: bool):
        self.skips_overflow = skips_overflow  # float16: the loss scaler leaves such a step out
        self.num_skipped = 0

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.deepspeed_plugin is not None:
            finite = not kwargs["optimizer"].step_was_skipped
        else:
            finite = not any_process(not _gradients_are_finite(kwargs["model"]))
        if finite:
            self.num_skipped = 0
            return
        self.num_skipped += 1
        if self.skips_overflow and self.num_skipped < MAX_SKIPPED_STEPS:
            return
        many = say(" for the {times}th time in a row", times=self.num_skipped) if self.skips_overflow else ""
        raise NotFiniteError(
            "the gradient of step {step} is not finite{many} although the loss is. Likely causes: a learning rate that "
            "is too high, or a base in float16 that overflows (use bfloat16 or float32)",
            step=state.global_step + 1,
            many=many,
        )


def _gradients_are_finite(model: Any) -> bool:
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    local = [g.to_local() if isinstance(g, DTensor) else g for g in gradients]  # this process's part, under FSDP2
    return not local or bool(torch.stack([torch.isfinite(g).all() for g in local]).all())

"""Reading weights that ZeRO-3 or FSDP2 have split over processes. All processes call these functions together."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers.integrations import is_deepspeed_zero3_enabled


@contextmanager
def gathered(parameters: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Yields the parameters whole, to be read. Where nothing is split they are yielded as they are."""
    with ExitStack() as stack:
        if is_deepspeed_zero3_enabled():
            import deepspeed

            stack.enter_context(deepspeed.zero.GatheredParameters(parameters))
        yield [p.full_tensor() if isinstance(p, DTensor) else p for p in parameters]


@contextmanager
def gathered_in_turn(model: nn.Module) -> Iterator[None]:
    """Inside, `model` can compute although ZeRO-3 has split it: each module gathers its weights while it runs.

    For a forward pass without gradient before training, whose engine does this from then on.
    """
    if not is_deepspeed_zero3_enabled():
        yield
        return
    import deepspeed

    def gather(module: Any, _: Any) -> None:
        module.gathered_weights = deepspeed.zero.GatheredParameters(list(module.parameters(recurse=False)))
        module.gathered_weights.__enter__()

    def release(module: Any, *_: Any) -> None:
        module.gathered_weights.__exit__(None, None, None)
        del module.gathered_weights

    owners = [module for module in model.modules() if any(True for _ in module.parameters(recurse=False))]
    hooks = [module.register_forward_pre_hook(gather) for module in owners]
    hooks += [module.register_forward_hook(release) for module in owners]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()

"""Generation by a model whose weights are split over processes (DeepSpeed ZeRO-3, FSDP2).

Left as it is, every new token would gather all layers again. A model that fits is gathered once instead.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from softlaunch.collective import every_process
from softlaunch.messages import say

logger = logging.getLogger(__name__)

_MEMORY_SHARE = 0.5  # of what is free: the KV cache and the logits need the rest
_IN_USE = "softlaunch generates"


@contextmanager
def whole_weights(model: nn.Module) -> Iterator[bool]:
    """Inside, every process has all weights of `model` if that fits into half of the free memory of each.

    All processes enter and leave it together. Yields whether they need one another in every forward pass, so that all
    have to call it equally often (`synced_gpus` of `generate`): always where weights are split. Whole ones are not
    fetched, but DeepSpeed still compares the order of modules between processes at the start of a pass, and one that
    had answered sooner would wait there for ever.
    """
    split: list[Any] = [p for p in model.parameters() if hasattr(p, "ds_id")]
    if not split:
        yield any(isinstance(module, FSDPModule) for module in model.modules())
        return
    num_bytes = sum(p.ds_numel * p.element_size() for p in split)
    if not _fits_everywhere(num_bytes):
        gib = num_bytes / 1024**3
        logger.warning(
            say("the model's {gib:.1f} GiB do not fit: ZeRO-3 gathers it anew for every token, which is slow", gib=gib)
        )
        yield True
        return
    import deepspeed

    # Small parameters may be whole already and are to stay so
    with deepspeed.zero.GatheredParameters([p for p in split if p.numel() == 0]):
        for parameter in split:  # DeepSpeed releases a parameter after a module's forward unless another one uses it
            parameter.ds_active_sub_modules.add(_IN_USE)
        try:
            yield True
        finally:
            for parameter in split:
                parameter.ds_active_sub_modules.discard(_IN_USE)


def _fits_everywhere(num_bytes: int) -> bool:
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    assert device is not None
    return every_process(num_bytes <= _MEMORY_SHARE * _free_bytes(device))


def _free_bytes(device: torch.device) -> int:
    if device.type == "cpu":
        import psutil

        return psutil.virtual_memory().available // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    cached = torch.accelerator.memory_reserved() - torch.accelerator.memory_allocated()
    return torch.accelerator.get_memory_info()[0] + cached

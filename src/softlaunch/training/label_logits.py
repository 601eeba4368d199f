"""Logits where there are labels, and nowhere else.

At 65k tokens of vocabulary the logits of a whole batch cost more than a small model's layers, in time and in memory.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel


class LogitsAtLabels:
    """Lets a causal language model's head see only some positions of the hidden states.

    A hook on the head does it, not `logits_to_keep`, which takes the same columns of every row. It stands inside the
    model's own forward pass, so DDP, DeepSpeed, FSDP2 and torch.compile do their work as they always do.
    """

    def __init__(self, model: PreTrainedModel):
        self._positions: torch.Tensor | None = None
        self._length = 0
        model.get_output_embeddings().register_forward_pre_hook(self._select)

    @contextmanager
    def at(self, kept: torch.Tensor) -> Iterator[None]:
        """Inside, the model returns logits (number of kept positions, vocabulary), row by row.

        `kept`: bool (batch, length). Embeddings that a soft prompt puts in front of every row are not kept.
        """
        self._positions, self._length = kept.nonzero(), kept.shape[1]
        try:
            yield
        finally:
            self._positions = None

    def _select(self, head: nn.Module, args: tuple[torch.Tensor]) -> Any:
        if self._positions is None:
            return None
        hidden_states = args[0]
        row, column = self._positions.unbind(1)
        num_in_front = hidden_states.shape[1] - self._length
        flat = row * hidden_states.shape[1] + column + num_in_front
        return (hidden_states.flatten(0, 1).index_select(0, flat),)

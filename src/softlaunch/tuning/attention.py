"""Learned keys and values in front of the real ones, inside attention (P-Tuning v2, arXiv:2110.07602).

A model's forward hands a `PrefixStates` to every attention layer as a keyword argument. Nothing is stored on the model
and nothing goes through the KV cache, so gradient checkpointing recomputes the prefix like any other operation, real
tokens keep their positions from 0, and every forward may carry another prefix.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from softlaunch.errors import ArgumentError

IMPLEMENTATIONS = {"sdpa": "prefix_sdpa", "eager": "prefix_eager"}


class PrefixStates:
    """The keys and values of one forward pass, and how many layers have used them.

    `states`: (num_layers, 2, kv_heads, num_virtual_tokens, head_dim), float32; keys first, not rotated by RoPE.
    """

    def __init__(self, states: torch.Tensor, dropout: float = 0.0):
        self.states = states
        self.dropout = dropout
        self.num_layers_applied = 0

    def prepend(
        self, module: Any, num_queries: int, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Keys and values (batch, kv_heads, n + k, head_dim), and a mask in which all queries see the n prefix keys."""
        if can_count(module):
            self.num_layers_applied += 1
        # Expanded and dropped out in float32, one mask per row as in the original; cast last, so that the gradient
        # is summed over the batch in float32 too.
        prefix = self.states[module.prefix_layer].to(key.device)
        prefix = prefix.unsqueeze(1).expand(-1, key.shape[0], -1, -1, -1)
        prefix = nn.functional.dropout(prefix, self.dropout, module.training).to(key.dtype)
        if mask is not None:
            # sdpa's mask is boolean with True for "sees", eager's is added to the scores
            visible = True if mask.dtype == torch.bool else 0.0
            mask = nn.functional.pad(mask, (prefix.shape[3], 0), value=visible)
        elif num_queries > 1 and module.is_causal:  # no mask means causal in a decoder, and all-to-all in an encoder
            num_keys = prefix.shape[3] + key.shape[2]
            mask = torch.ones(num_queries, num_keys, dtype=torch.bool, device=key.device)
            mask = mask.tril(num_keys - num_queries)[None, None]
        return torch.cat([prefix[0], key], dim=2), torch.cat([prefix[1], value], dim=2), mask


def can_count(module: nn.Module) -> bool:
    """Whether layers can be counted now: not in a compiled training step, whose checkpoints allow no side effect."""
    return not (module.training and torch.compiler.is_compiling())


def _sdpa(module: nn.Module) -> Callable:
    return ALL_ATTENTION_FUNCTIONS["sdpa"]


def _eager(module: nn.Module) -> Callable:
    return sys.modules[type(module).__module__].eager_attention_forward  # each model file of transformers has its own


def _with_prefix(attend: Callable[[nn.Module], Callable]) -> Callable:
    def attention(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        prefix_states: PrefixStates | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if prefix_states is not None:
            key, value, attention_mask = prefix_states.prepend(module, query.shape[2], key, value, attention_mask)
        return attend(module)(module, query, key, value, attention_mask, **kwargs)

    return attention


def attention_modules(model: PreTrainedModel) -> list[Any]:
    """The self-attention modules of `model` in layer order: those that transformers numbers and marks as causal."""
    return [m for m in model.modules() if hasattr(m, "layer_idx") and hasattr(m, "is_causal")]


def check_implementation(name: str | None) -> None:
    """Raises ArgumentError for an attention implementation that cannot take a prefix; None is transformers' choice."""
    if name is not None and name not in IMPLEMENTATIONS:
        raise ArgumentError(
            "attention implementation {current!r} cannot take a prefix; load the model with attn_implementation "
            "{allowed}",
            current=name,
            allowed=" / ".join(map(repr, IMPLEMENTATIONS)),
        )


def use_prefix_attention(model: PreTrainedModel) -> str:
    """Switch `model` to the attention that takes `prefix_states`; returns the name of the implementation.

    Raises ArgumentError for an implementation or a model that cannot take a prefix.
    """
    current = _plain_name(model)
    check_implementation(current)
    modules, num_layers = attention_modules(model), model.config.get_text_config().num_hidden_layers
    if len(modules) != num_layers:
        raise ArgumentError(
            "{kind} has {num_layers} layers but {num_modules} attention modules that use transformers' "
            "attention interface; P-Tuning v2 needs one in every layer",
            kind=type(model).__name__,
            num_layers=num_layers,
            num_modules=len(modules),
        )
    for layer, module in enumerate(modules):
        module.prefix_layer = layer
    name = IMPLEMENTATIONS[current]
    AttentionInterface.register(name, _with_prefix({"sdpa": _sdpa, "eager": _eager}[current]))
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[current])
    model.set_attn_implementation(name)
    return name


def use_plain_attention(model: PreTrainedModel) -> None:
    """Undo `use_prefix_attention`."""
    model.set_attn_implementation(_plain_name(model))


def _plain_name(model: PreTrainedModel) -> str:
    current = model.config._attn_implementation
    return {name: plain for plain, name in IMPLEMENTATIONS.items()}.get(current, current)

"""Turning the keys of a prefix by the model's own rotary embedding.

Prefix keys are not rotated. Keys that were computed or trained under other conventions become such keys by a rotation:
(R_{t+n} q)·(R_j k) = (R_t q)·(R_{j-n} k).
"""

import sys

import torch
from transformers import PreTrainedModel

from softlaunch.errors import ArgumentError
from softlaunch.tuning.attention import attention_modules


def rotate_keys(model: PreTrainedModel, keys: torch.Tensor, positions: int) -> torch.Tensor:
    """`keys` (…, kv_heads, num_tokens, head_dim), float32, each turned by `positions` (may be negative).

    A model without rotary embedding gets its keys back unchanged. Raises ArgumentError where the rotation depends on
    the length of the input (`dynamic` and `longrope`), for there is no single such key.
    """
    rotary = getattr(model.base_model, "rotary_emb", None)
    if rotary is None:
        return keys
    if rotary.rope_type in ("dynamic", "longrope"):
        raise ArgumentError(
            "{rope_type!r} rotary embeddings change with the length of the input, no fixed key fits: neither text "
            "initialisation nor PEFT's format is possible; initialise the prefix with 'random' or 'zero'",
            rope_type=rotary.rope_type,
        )
    apply = sys.modules[type(attention_modules(model)[0]).__module__].apply_rotary_pos_emb
    device = next(rotary.buffers()).device  # the model may be spread over several, or have no weights at all
    flat = keys.float().reshape(-1, *keys.shape[-3:]).to(device)
    position_ids = torch.full((1, keys.shape[-2]), positions, device=device)
    cos, sin = rotary(flat, position_ids)
    # YaRN multiplies the rotated part by a factor on both sides; a turned key must keep its length
    scale = rotary.attention_scaling
    _, turned = apply(flat, flat, cos / scale, sin / scale)
    return turned.reshape(keys.shape).to(keys.device)

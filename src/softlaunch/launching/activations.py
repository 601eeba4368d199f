"""Bytes that autograd keeps of a forward pass for the backward pass.

Counted from what every operation of transformers' blocks saves: a norm its float32 input, attention its queries, keys,
values and output (keys and values repeated for every query head), SwiGLU three times the ffn size; in an encoder, GELU
once, and what dropout leaves out. A frozen matrix needs no input again, a trained one does. Symbols as in `memory`.
"""

from dataclasses import dataclass

from softlaunch.arguments.defaults import LORA_R
from softlaunch.launching.settings import RunSettings
from softlaunch.launching.shape import ModelShape
from softlaunch.launching.strategy import Machines
from softlaunch.launching.trainable import ia3_targets, lora_targets, num_frozen_layers

_FLOAT32 = 4
_MLP = ("gate_up_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Precision:
    """`size`: bytes of a number in what is computed, `weight_size` of one in the frozen base; `uses_autocast`: with
    bf16 or fp16; `mask_size`: bytes by which dropout remembers a number.
    """

    size: int
    weight_size: int
    mask_size: int
    uses_autocast: bool
    trains_base: bool
    trains_head: bool
    classifies: bool

    @property
    def is_half(self) -> bool:
        return self.size == 2

    @property
    def residual_size(self) -> int:
        """Bytes of a number between the layers: float32 where the weights are, of trained bases and of encoders."""
        return _FLOAT32 if self.trains_base or self.classifies else self.size

    @classmethod
    def of(cls, settings: RunSettings, machines: Machines) -> "Precision":
        """As `softlaunch.models` chooses it."""
        autocast = settings.bf16 or settings.fp16
        half = settings.dtype in ("bfloat16", "float16") or autocast
        if settings.dtype == "auto" and not autocast:
            half = machines.on_gpu
        elif settings.dtype == "float32" and not autocast:
            half = False
        full = "full" in settings.methods
        if full or "freeze" in settings.methods:
            half = autocast  # what is trained is float32 whatever dtype says
        if settings.classifies:
            half = autocast  # encoders are loaded in float32
        size = 2 if half else _FLOAT32
        return cls(
            size=size,
            weight_size=_FLOAT32 if settings.classifies else size,
            mask_size=1 if machines.on_gpu else size,  # only the CPU has no kernel of its own for it
            uses_autocast=autocast,
            trains_base=full,
            trains_head=full and not settings.classifies,
            classifies=settings.classifies,
        )


@dataclass(frozen=True)
class Batch:
    """What one pass sees: `tokens` per row, with soft prompts in front of them; `prefix` virtual tokens per layer."""

    rows: int
    tokens: int
    prefix: int

    @classmethod
    def of_training(cls, settings: RunSettings) -> "Batch":
        virtual = settings.pre_seq_len or 0
        in_front = virtual if settings.methods[0] in ("prompt_tuning", "p_tuning") else 0
        prefix = virtual if "p_tuning_v2" in settings.methods else 0
        return cls(settings.per_device_train_batch_size, settings.row_tokens + in_front, prefix)

    @property
    def has_mask(self) -> bool:
        """Rows of unlike length, or a prefix that a causal mask knows nothing of."""
        return self.rows > 1 or self.prefix > 0


def activation_bytes(
    shape: ModelShape, settings: RunSettings, precision: Precision, batch: Batch, checkpointing: bool
) -> int:
    """Of all layers behind the first trained number; with checkpointing their inputs alone."""
    if "head" in settings.methods:
        return 0  # it learns from what the encoder made of every row before
    if checkpointing:
        kept = batch.rows * batch.tokens * precision.residual_size * shape.hidden_size
    else:
        kept = layer_bytes(shape, settings, precision, batch)
    return (shape.num_layers - num_frozen_layers(shape, settings)) * kept + _projection_bytes(shape, settings, batch)


def layer_bytes(shape: ModelShape, settings: RunSettings, precision: Precision, batch: Batch) -> int:
    """Of one layer."""
    h, q, f, s = shape.hidden_size, shape.query_size, shape.ffn_size, precision.size
    per_token = shape.num_norms * _FLOAT32 * h + 4 * s * q + (s if shape.is_encoder else 3 * s) * f
    if shape.is_encoder:
        per_token += 2 * precision.mask_size * h
    if shape.normalizes_heads:
        per_token += _FLOAT32 * (q + shape.kv_size)
    if "lora" in settings.methods:
        per_token += _lora_inputs(shape, settings, precision)
    if "ia3" in settings.methods:
        targets = ia3_targets(shape, settings).items()
        per_token += s * sum(shape.matrices[name][0 if is_input else 1] for name, is_input in targets)
    if settings.quantization_bit == 8:
        per_token += s * (2 * h + q + f)  # the inputs, which LLM.int8() keeps although its weights are frozen
    if precision.trains_base or "freeze" in settings.methods:
        per_token += _all_inputs(shape, precision)
    keys = batch.tokens + batch.prefix
    mask = s * batch.tokens * keys if batch.has_mask else 0
    if shape.is_encoder and precision.mask_size > 1:  # attention with dropout on a CPU: scores, what drops out, both
        mask += 3 * s * shape.num_heads * batch.tokens * keys
    prefix = batch.prefix * 2 * (s * q + shape.kv_size)  # its keys and values, and the mask of their dropout
    return batch.rows * (batch.tokens * per_token + mask + prefix)


def layer_gradient_bytes(shape: ModelShape, precision: Precision, batch: Batch) -> int:
    """What a layer's backward pass needs beside what was kept: gradients of the MLP's intermediate results."""
    per_token = 2 * precision.residual_size * shape.hidden_size + 5 * precision.size * shape.ffn_size
    return batch.rows * batch.tokens * per_token


def _lora_inputs(shape: ModelShape, settings: RunSettings, precision: Precision) -> int:
    """Inputs of the adapted matrices per token: in half precision every one gets its own copy, else they are shared."""
    targets = lora_targets(shape, settings)
    rank = (settings.lora_r or LORA_R) * _FLOAT32 * len(targets)
    if settings.lora_dropout:  # every matrix gets what is left of its input
        kept = precision.size if precision.uses_autocast else _FLOAT32
        dropped = _FLOAT32 if precision.mask_size > 1 else 1
        return rank + (kept + dropped) * sum(shape.matrices[name][0] for name in targets)
    if precision.is_half:
        size = precision.size if precision.uses_autocast else _FLOAT32
        return rank + sum(size * shape.matrices[name][0] for name in targets)
    shared = {
        "attention": any(name in ("q_proj", "k_proj", "v_proj", "query", "key", "value") for name in targets),
        "mlp": any(name in ("gate_up_proj", "gate_proj", "up_proj", "intermediate.dense") for name in targets),
    }
    down = shape.ffn_size if {"down_proj", "output.dense"} & set(targets) else 0
    return rank + _FLOAT32 * (sum(shared.values()) * shape.hidden_size + down)


def _all_inputs(shape: ModelShape, precision: Precision) -> int:
    """Inputs of all matrices and norms per token; autocast makes a copy for every matrix."""
    h, f, s = shape.hidden_size, shape.ffn_size, precision.size
    if shape.is_encoder:
        return s * ((3 if precision.is_half else 1) * h + shape.query_size + h + f)
    norms = shape.num_norms * _FLOAT32 * h
    if precision.is_half:
        num_mlp_inputs = sum(name in shape.matrices for name in _MLP if name != "down_proj")
        return norms + s * ((3 + num_mlp_inputs) * h + f)
    return norms + s * (2 * h + f)


def _projection_bytes(shape: ModelShape, settings: RunSettings, batch: Batch) -> int:
    if not (settings.prefix_projection and batch.prefix):
        return 0
    width = shape.num_layers * 2 * shape.kv_size
    return _FLOAT32 * batch.prefix * 2 * (width + shape.hidden_size)

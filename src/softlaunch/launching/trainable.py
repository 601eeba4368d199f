"""How many numbers a tuning method trains."""

import contextlib
import re

from softlaunch.errors import ArgumentError
from softlaunch.launching.settings import RunSettings
from softlaunch.launching.shape import ModelShape

DEFAULT_LORA_RANK = 8
DEFAULT_FREEZE_LAYERS = 2
# Which layers `auto` takes, by model_type; for others those that PEFT takes in ChatGLM's own code (`tuning.targets`)
_LORA_AUTO = dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), ("q_proj", "v_proj"))
_LORA_ELSE = ("q_proj", "k_proj", "v_proj")
_IA3_AUTO = {
    "llama": ("k_proj", "v_proj", "down_proj"),
    "mistral": ("k_proj", "v_proj", "down_proj"),
    "qwen2": ("q_proj", "v_proj", "down_proj"),
    "qwen3": ("q_proj", "v_proj", "down_proj"),
}
_IA3_ELSE = ("k_proj", "v_proj", "down_proj")
_IA3_FEEDFORWARD = "down_proj"  # there the inputs are rescaled, elsewhere the outputs
_RELEASED_NAMES = {
    "query_key_value": ("q_proj", "k_proj", "v_proj"),
    "dense": ("o_proj",),
    "dense_h_to_4h": ("gate_up_proj",),
    "dense_4h_to_h": ("down_proj",),
}


def trainable_parameters(shape: ModelShape, settings: RunSettings) -> int:
    """The sum over the methods that the settings ask for; raises ArgumentError when one lacks its size."""
    unknown = [method for method in settings.methods if method not in _COUNTS]
    if unknown:
        raise ArgumentError(
            "there is no plan for tuning {method}; there is for {known}", method=unknown[0], known=", ".join(_COUNTS)
        )
    return sum(_COUNTS[method](shape, settings) for method in settings.methods)


def num_frozen_layers(shape: ModelShape, settings: RunSettings) -> int:
    """Layers in front of everything that is trained, which need no backward pass: those of the freeze method."""
    if "freeze" not in settings.methods:
        return 0
    return max(0, shape.num_layers - (settings.freeze_trainable_layers or DEFAULT_FREEZE_LAYERS))


def lora_targets(shape: ModelShape, settings: RunSettings) -> list[str]:
    """Names of the matrices in a block that LoRA goes to; raises ArgumentError for names that there are not."""
    return _targets(shape, settings.lora_target_modules, _LORA_AUTO.get(shape.model_type, _LORA_ELSE))


def _targets(shape: ModelShape, asked: list[str] | str, auto: tuple[str, ...]) -> list[str]:
    if asked == "auto":
        return list(auto)
    if asked == "all-linear":
        return list(shape.matrices)
    words = re.split(r"\s*,\s*", asked) if isinstance(asked, str) else asked
    names = [name for word in words for name in _RELEASED_NAMES.get(word, (word,))]
    if isinstance(asked, str) and not set(names) <= set(shape.matrices):  # a regular expression for whole paths
        sides = {"mlp": ("gate_up_proj", "gate_proj", "up_proj", "down_proj")}
        paths = {n: f"model.layers.0.{'mlp' if n in sides['mlp'] else 'self_attn'}.{n}" for n in shape.matrices}
        with contextlib.suppress(re.error):
            names = [name for name, path in paths.items() if re.fullmatch(asked, path)] or names
    unknown = [name for name in names if name not in shape.matrices]
    if unknown:
        raise ArgumentError(
            "there is no layer {names} in the blocks of {model}; there are {known}",
            names=", ".join(unknown),
            model=shape.model_type,
            known=", ".join(shape.matrices),
        )
    return names


def _prefix(shape: ModelShape, settings: RunSettings) -> int:
    width = shape.num_layers * 2 * shape.kv_size
    table = _virtual_tokens(settings) * width
    if not settings.prefix_projection:
        return table
    return table + 2 * width * shape.hidden_size + shape.hidden_size + width


def _lora(shape: ModelShape, settings: RunSettings) -> int:
    rank = settings.lora_r or DEFAULT_LORA_RANK
    return shape.num_layers * rank * sum(sum(shape.matrices[name]) for name in lora_targets(shape, settings))


def _ia3(shape: ModelShape, settings: RunSettings) -> int:
    names = _targets(shape, settings.ia3_target_modules, _IA3_AUTO.get(shape.model_type, _IA3_ELSE))
    return shape.num_layers * sum(shape.matrices[name][0 if name == _IA3_FEEDFORWARD else 1] for name in names)


def _prompt(shape: ModelShape, settings: RunSettings) -> int:
    return _virtual_tokens(settings) * shape.hidden_size


def _p_tuning(shape: ModelShape, settings: RunSettings) -> int:
    """PEFT's MLP encoder as wide as the base: three linear layers behind the embedding."""
    return _prompt(shape, settings) + 3 * (shape.hidden_size**2 + shape.hidden_size)


def _freeze(shape: ModelShape, settings: RunSettings) -> int:
    return (shape.num_layers - num_frozen_layers(shape, settings)) * shape.block_parameters


def _virtual_tokens(settings: RunSettings) -> int:
    if settings.pre_seq_len is None:
        raise ArgumentError(
            "pre_seq_len is not set: {method} needs the number of virtual tokens", method=settings.methods[0]
        )
    return settings.pre_seq_len


_COUNTS = {
    "p_tuning_v2": _prefix,
    "lora": _lora,
    "ia3": _ia3,
    "prompt_tuning": _prompt,
    "p_tuning": _p_tuning,
    "full": lambda shape, _: shape.parameters,
    "freeze": _freeze,
}

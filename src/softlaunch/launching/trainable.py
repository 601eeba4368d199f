"""How many numbers a tuning method trains."""

import contextlib
import math
import re

from softlaunch.arguments.defaults import LORA_R, NUM_TRAINED_LAYERS
from softlaunch.errors import ArgumentError
from softlaunch.launching.settings import RunSettings
from softlaunch.launching.shape import ENCODERS, ModelShape, UnknownSize
from softlaunch.layer_names import RELEASED_LAYERS

# Which layers `auto` takes, by model_type; for others those that PEFT takes in ChatGLM's own code (`tuning.targets`)
_LORA_AUTO = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), ("q_proj", "v_proj")),
    **dict.fromkeys(ENCODERS, ("query", "value")),
}
_LORA_ELSE = ("q_proj", "k_proj", "v_proj")
_IA3_AUTO = {
    "llama": ("k_proj", "v_proj", "down_proj"),
    "mistral": ("k_proj", "v_proj", "down_proj"),
    "qwen2": ("q_proj", "v_proj", "down_proj"),
    "qwen3": ("q_proj", "v_proj", "down_proj"),
    **dict.fromkeys(ENCODERS, ("key", "value", "output.dense")),
}
_IA3_ELSE = ("k_proj", "v_proj", "down_proj")
# There the inputs are rescaled, elsewhere the outputs
_IA3_FEEDFORWARD_AUTO = {**dict.fromkeys(ENCODERS, ("output.dense",))}
_IA3_FEEDFORWARD_ELSE = ("down_proj",)


def trainable_parameters(shape: ModelShape, settings: RunSettings) -> int:
    """The sum over the methods that the settings ask for; raises ArgumentError when one lacks its size."""
    unknown = [method for method in settings.methods if method not in _COUNTS]
    if unknown:
        raise ArgumentError(
            "there is no plan for tuning {method}; there is for {known}", method=unknown[0], known=", ".join(_COUNTS)
        )
    head = shape.head_parameters if settings.methods != ("full",) else 0
    saved = sum(_saved_layer(shape, name) for name in settings.modules_to_save or [])
    return sum(_COUNTS[method](shape, settings) for method in settings.methods) + head + saved


def num_frozen_layers(shape: ModelShape, settings: RunSettings) -> int:
    """Layers in front of everything that is trained, which need no backward pass: those of the freeze method."""
    if "freeze" not in settings.methods:
        return 0
    return max(0, shape.num_layers - (settings.freeze_trainable_layers or NUM_TRAINED_LAYERS))


def lora_targets(shape: ModelShape, settings: RunSettings) -> list[str]:
    """Names of the matrices in a block that LoRA goes to; raises ArgumentError for names that there are not."""
    return _targets(shape, settings.lora_target_modules, _LORA_AUTO.get(shape.model_type, _LORA_ELSE))


def ia3_targets(shape: ModelShape, settings: RunSettings) -> dict[str, bool]:
    """Names of the matrices in a block that IA3 rescales, and whether it does so with their inputs."""
    kind = shape.model_type
    names = _targets(shape, settings.ia3_target_modules, _IA3_AUTO.get(kind, _IA3_ELSE))
    auto = _IA3_FEEDFORWARD_AUTO.get(kind, _IA3_FEEDFORWARD_ELSE)
    inputs = _targets(shape, settings.ia3_feedforward_modules, auto)
    return {name: name in inputs for name in names}


def _targets(shape: ModelShape, asked: list[str] | str, auto: tuple[str, ...]) -> list[str]:
    if asked == "auto":
        asked = list(auto)
    if asked == "all-linear":
        return list(shape.matrices)
    words = re.split(r"\s*,\s*", asked) if isinstance(asked, str) else asked
    words = [
        name for word in words for name in ((word,) if _matching(shape, word) else RELEASED_LAYERS.get(word, (word,)))
    ]
    names = [name for word in words for name in _matching(shape, word) or [word]]
    if isinstance(asked, str) and not set(names) <= set(shape.matrices):  # a regular expression for whole paths
        sides = {"mlp": ("gate_up_proj", "gate_proj", "up_proj", "down_proj")}
        paths = {n: f"model.layers.0.{'mlp' if n in sides['mlp'] else 'self_attn'}.{n}" for n in shape.matrices}
        with contextlib.suppress(re.error):
            names = [name for name, path in paths.items() if re.fullmatch(asked, path)] or names
    names = list(dict.fromkeys(names))
    unknown = [name for name in names if name not in shape.matrices]
    if unknown:
        raise ArgumentError(
            "there is no layer {names} in the blocks of {model}; there are {known}",
            names=", ".join(unknown),
            model=shape.model_type,
            known=", ".join(shape.matrices),
        )
    return names


def _matching(shape: ModelShape, word: str) -> list[str]:
    """As PEFT matches names: with the ends of paths."""
    return [name for name in shape.matrices if f".{name}".endswith(f".{word}")]


def _saved_layer(shape: ModelShape, name: str) -> int:
    """A layer that trains whole beside an adapter: one in every block, or the input or output of the model."""
    found = _matching(shape, name)
    if found:
        return shape.num_layers * sum(math.prod(shape.matrices[matrix]) for matrix in found)
    if name in ("lm_head", "embed_tokens", "word_embeddings"):
        return shape.vocab_size * shape.hidden_size
    raise UnknownSize(
        "there is no plan for modules_to_save {name}; there is for {known}",
        name=name,
        known=", ".join([*shape.matrices, "lm_head", "embed_tokens"]),
    )


def _prefix(shape: ModelShape, settings: RunSettings) -> int:
    width = shape.num_layers * 2 * shape.kv_size
    table = _virtual_tokens(settings) * width
    if not settings.prefix_projection:
        return table
    return table + 2 * width * shape.hidden_size + shape.hidden_size + width


def _lora(shape: ModelShape, settings: RunSettings) -> int:
    rank = settings.lora_r or LORA_R
    sizes = [shape.matrices[name] for name in lora_targets(shape, settings)]
    magnitudes = sum(outputs for _, outputs in sizes) if settings.use_dora else 0
    return shape.num_layers * (rank * sum(map(sum, sizes)) + magnitudes)


def _ia3(shape: ModelShape, settings: RunSettings) -> int:
    targets = ia3_targets(shape, settings).items()
    return shape.num_layers * sum(shape.matrices[name][0 if is_input else 1] for name, is_input in targets)


def _prompt(shape: ModelShape, settings: RunSettings) -> int:
    return _virtual_tokens(settings) * shape.hidden_size


def _p_tuning(shape: ModelShape, settings: RunSettings) -> int:
    """PEFT's encoder behind the embedding: an MLP of three layers, or an LSTM that reads both ways and two layers."""
    outside, inside = shape.hidden_size, settings.encoder_hidden_size or shape.hidden_size
    if settings.encoder_type == "mlp":
        return _prompt(shape, settings) + _linear(outside, inside) + _linear(inside, inside) + _linear(inside, outside)
    inputs = [outside, *[2 * inside] * (settings.encoder_num_layers - 1)]
    lstm = sum(2 * 4 * inside * (size + inside + 2) for size in inputs)
    return _prompt(shape, settings) + lstm + _linear(2 * inside, 2 * inside) + _linear(2 * inside, outside)


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def _freeze(shape: ModelShape, settings: RunSettings) -> int:
    return (shape.num_layers - num_frozen_layers(shape, settings)) * shape.block_parameters


def _virtual_tokens(settings: RunSettings) -> int:
    text = settings.prompt_init_text if "prompt_tuning" in settings.methods else None
    if settings.pre_seq_len is None and (text or settings.prefix_init == "text"):
        raise UnknownSize(
            "a plan does not count the tokens of the text to start from: give pre_seq_len, as --pre_seq_len 32"
        )
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
    "head": lambda shape, settings: 0,  # the head is counted with every method
}

"""Which layers of a base LoRA and IA3 go to: names, a regular expression, or what suits the architecture."""

import re
from collections.abc import Iterable, Sequence
from typing import Any, cast

from peft.utils.constants import (
    TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING as IA3_FEEDFORWARD,
)
from peft.utils.constants import (
    TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as IA3_TARGETS,
)
from peft.utils.constants import (
    TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as LORA_TARGETS,
)
from torch import nn
from transformers import PreTrainedModel

from softlaunch.errors import ArgumentError
from softlaunch.layer_names import RELEASED_LAYERS

ALL_LINEAR = "all-linear"  # PEFT's own word

# For architectures that PEFT has no entry for, GLM among them: the layers that PEFT takes in ChatGLM's own code
_FALLBACK = {
    "lora": ["q_proj", "k_proj", "v_proj"],
    "ia3": ["k_proj", "v_proj", "down_proj"],
    "ia3 feed-forward": ["down_proj"],
}
_KNOWN: dict[str, Any] = {"lora": LORA_TARGETS, "ia3": IA3_TARGETS, "ia3 feed-forward": IA3_FEEDFORWARD}

_NAMES = re.compile(r"[\w.-]+(\s*,\s*[\w.-]+)*")


def find_targets(model: PreTrainedModel, asked: Sequence[str] | str, method: str) -> list[str] | str:
    """What PEFT takes as `target_modules`: names, or a regular expression for whole paths.

    `asked`: names, also comma-separated and those of the released ChatGLM code; a regular expression; `all-linear`; or
    `auto`. `method`: lora, ia3 or ia3 feed-forward, for `auto`. Raises ArgumentError when something of it matches no
    layer, with those that there are.
    """
    if asked == ALL_LINEAR:
        return ALL_LINEAR
    if asked == "auto":
        known = _KNOWN[method].get(model.config.model_type, _FALLBACK[method])
        names = known if isinstance(known, str) else [name for name in known if _matches(model, name)]
        return names or _refuse(model, [f"auto ({', '.join(_FALLBACK[method])})"])
    given = split_names(asked)
    if given is None:
        pattern = cast(str, asked)
        return pattern if _matches_pattern(model, pattern) else _refuse(model, [pattern])
    names = [native for name in given for native in _native(model, name)]
    missing = [name for name in names if not _matches(model, name)]
    return _refuse(model, missing) if missing else names


def split_names(asked: Sequence[str] | str) -> list[str] | None:
    """The names in `asked`, a list or separated by commas; None for a regular expression."""
    if not isinstance(asked, str):
        return list(asked)
    return re.split(r"\s*,\s*", asked.strip()) if _NAMES.fullmatch(asked.strip()) else None


def layer_names(model: nn.Module) -> list[str]:
    """The last parts of the names of the layers with weights, as they are given to LoRA."""
    return sorted({path.rpartition(".")[2] for path in _layers(model)})


def _native(model: PreTrainedModel, name: str) -> Sequence[str]:
    """The released name of a layer as the names that it has here."""
    return RELEASED_LAYERS[name] if name in RELEASED_LAYERS and not _matches(model, name) else [name]


def _layers(model: nn.Module) -> Iterable[str]:
    return [path for path, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Embedding))]


def _matches(model: nn.Module, name: str) -> bool:
    return any(path == name or path.endswith(f".{name}") for path in _layers(model))


def _matches_pattern(model: nn.Module, pattern: str) -> bool:
    try:
        return any(re.fullmatch(pattern, path) for path in _layers(model))
    except re.error as error:
        raise ArgumentError(
            "{pattern!r} is neither a name nor a regular expression: {error}", pattern=pattern, error=str(error)
        ) from error


def _refuse(model: PreTrainedModel, missing: list[str]) -> list[str]:
    raise ArgumentError(
        "no layer of {model} is called {missing}; there are {names}. A regular expression must match a whole path, "
        "such as {path}",
        model=type(model).__name__,
        missing=", ".join(missing),
        names=", ".join(layer_names(model)),
        path=next(iter(_layers(model)), ""),
    )

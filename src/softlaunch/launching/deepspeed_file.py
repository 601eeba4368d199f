"""A DeepSpeed file with its "auto" values filled in as transformers does, and what is wrong with it before a launch.

DeepSpeed takes `"8"` for a number until it multiplies it, and a batch size of its own beside the run's until the first
step; both are told here, with the key.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from softlaunch.errors import LaunchError
from softlaunch.launching.settings import RunSettings
from softlaunch.messages import say

_NUMBER, _WHOLE, _SWITCH, _DEVICE = "a number", "a whole number", "true or false", "none, cpu or nvme"
_KINDS = {
    "train_batch_size": _WHOLE,
    "train_micro_batch_size_per_gpu": _WHOLE,
    "gradient_accumulation_steps": _WHOLE,
    "gradient_clipping": _NUMBER,
    "bf16.enabled": _SWITCH,
    "fp16.enabled": _SWITCH,
    "zero_optimization.stage": _WHOLE,
    "zero_optimization.overlap_comm": _SWITCH,
    "zero_optimization.reduce_bucket_size": _NUMBER,
    "zero_optimization.allgather_bucket_size": _NUMBER,
    "zero_optimization.stage3_prefetch_bucket_size": _NUMBER,
    "zero_optimization.stage3_param_persistence_threshold": _NUMBER,
    "zero_optimization.stage3_max_live_parameters": _NUMBER,
    "zero_optimization.stage3_max_reuse_distance": _NUMBER,
    "zero_optimization.offload_optimizer.device": _DEVICE,
    "zero_optimization.offload_optimizer.pin_memory": _SWITCH,
    "zero_optimization.offload_param.device": _DEVICE,
    "zero_optimization.offload_param.pin_memory": _SWITCH,
}


def read_deepspeed_file(path: str | Path) -> dict[str, Any]:
    """The file as it stands; raises LaunchError when it cannot be read."""
    try:
        config = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise LaunchError(
            "{file}: the DeepSpeed file cannot be read ({error})", file=path, error=error.strerror
        ) from None
    except ValueError as error:
        raise LaunchError("{file}: the DeepSpeed file is no valid JSON: {error}", file=path, error=error) from None
    if not isinstance(config, dict):
        raise LaunchError("{file}: a DeepSpeed file holds one JSON object", file=path)
    return config


def owned_values(settings: RunSettings, num_processes: int, hidden_size: int | None) -> dict[str, Any]:
    """What "auto" becomes under each key: the run's own arguments, and buckets in proportion to the model."""
    micro, steps = settings.per_device_train_batch_size, settings.gradient_accumulation_steps
    values: dict[str, Any] = {
        "train_batch_size": micro * steps * num_processes,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": steps,
        "gradient_clipping": settings.max_grad_norm,
        "bf16.enabled": settings.bf16,
        "fp16.enabled": settings.fp16,
        "optimizer.params.lr": settings.learning_rate,
        "optimizer.params.weight_decay": settings.weight_decay,
        "scheduler.params.warmup_max_lr": settings.learning_rate,
    }
    if hidden_size is not None:
        values |= {
            "zero_optimization.reduce_bucket_size": hidden_size * hidden_size,
            "zero_optimization.stage3_prefetch_bucket_size": int(0.9 * hidden_size * hidden_size),
            "zero_optimization.stage3_param_persistence_threshold": 10 * hidden_size,
        }
    return values


def resolved(config: dict[str, Any], owned: dict[str, Any]) -> dict[str, Any]:
    """Dotted keys with their values, "auto" replaced where `owned` has the key."""
    return {key: owned.get(key, value) if value == "auto" else value for key, value in _flat(config)}


def find_problems(config: dict[str, Any], owned: dict[str, Any]) -> list[str]:
    """Values of another type, and values that differ from the run's own arguments."""
    problems = []
    for key, value in _flat(config):
        if value == "auto":
            continue
        kind = _KINDS.get(key)
        if kind is not None and not _is_a(value, kind):
            problems.append(say('{key} is {value!r}; it must be {kind} or "auto"', key=key, value=value, kind=kind))
        elif key in owned and not key.startswith("zero_") and value != owned[key]:
            problems.append(
                say(
                    '{key} is {value!r}, but the run\'s arguments make it {owned!r}: write "auto"',
                    key=key,
                    value=value,
                    owned=owned[key],
                )
            )
    if resolved(config, owned).get("zero_optimization.stage", 0) not in range(4):
        problems.append(say("zero_optimization.stage must be 0, 1, 2 or 3"))
    return problems


def check_deepspeed_file(path: str | Path, settings: RunSettings, num_processes: int) -> dict[str, Any]:
    """The resolved values; raises LaunchError that lists all problems."""
    config, owned = read_deepspeed_file(path), owned_values(settings, num_processes, None)
    problems = find_problems(config, owned)
    if problems:
        title = say("{file} does not fit this run:", file=os.path.relpath(path))
        raise LaunchError("\n".join([title, *(f"  {problem}" for problem in problems)]))
    return resolved(config, owned)


def _flat(config: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _is_a(value: Any, kind: str) -> bool:
    if kind == _SWITCH:
        return isinstance(value, bool)
    if kind == _DEVICE:
        return value in ("none", "cpu", "nvme", None)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and (kind == _NUMBER or value == int(value))

"""The text of `--help`."""

import dataclasses
import json
import shutil
import sys
import textwrap
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from softlaunch.arguments.old_names import current_options, idle_names, old_names
from softlaunch.arguments.options import Option
from softlaunch.messages import in_english

_WIDTHS = 80, 120  # lines are no shorter and no longer, whatever the terminal
_TITLES = {
    "model": "Base model",
    "tuning": "What is trained",
    "data": "Data and generated answers",
    "classification": "Classes of texts",
}
# Titles of the training options, and the beginnings of their names; the first that fits. The rest follows.
_TRAINING_TITLES = {
    "The run": ("output_dir", "restart", "resume", "do_", "seed", "data_seed", "full_determinism"),
    "Steps and optimizer": (
        *(
            "num_train_epochs",
            "max_steps",
            "per_device_train",
            "gradient_acc",
            "learning_rate",
            "lr_",
            "warmup",
            "optim",
        ),
        *("weight_decay", "adam", "max_grad_norm", "neftune", "average_tokens"),
    ),
    "Evaluation and choice of the best": (
        *("eval", "per_device_eval", "predict", "load_best", "metric_for", "greater_is", "label_names"),
    ),
    "Checkpoints": ("save", "ignore_data", "restore", "enable_jit"),
    "Logs": ("log", "report_to", "run_name", "disable_tqdm", "include_num", "trackio", "project"),
    "Precision, memory and speed": (
        *("bf16", "fp16", "tf32", "activation", "gradient_check", "auto_find", "torch", "use_", "dataloader", "liger"),
    ),
    "Several processes": ("deepspeed", "fsdp", "ddp", "accelerator", "local_rank"),
    "The hub": ("push_to_hub", "hub_"),
}


def format_help(
    description: str = "",
    *,
    unused: Collection[str] = (),
    classifies: bool = False,
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> str:
    """All options that a recipe reads by group with type, limits and default, then the old names still accepted.

    `unused`, `classifies` and `defaults` are those of `parse_arguments`. In English.
    """
    script = Path(sys.argv[0]).name
    lines = [f"usage: {script} [RUN.json] [--option value …]", ""]
    for paragraph in filter(None, description.strip().split("\n\n")):  # an indented one is a command
        lines += [paragraph, ""] if paragraph.startswith(" ") else [*_fill(paragraph, ""), ""]
    lines += _fill(
        "RUN.json holds options as one JSON object; flags win over it. --option alone and --no_option switch on and "
        "off, null unsets. Relative paths are relative to the current directory.",
        "",
    )
    options = [
        dataclasses.replace(option, default=defaults.get(option.name, option.default))
        for option in current_options().values()
        if option.name not in unused and (classifies or option.group != "classification")
    ]
    for title, group in _by_title(options).items():
        lines += ["", f"{title}:"]
        for option in group:
            lines += [f"  --{option.name}", *_fill(_describe(option), "      ")]
    lines += ["", "Old names, still accepted:"]
    for name, new in old_names().items():
        lines += _fill(f"--{name}: now --{new}", "  ", "    ")
    lines += ["", "Accepted without effect:"]
    for name, reason in idle_names().items():
        lines += _fill(f"--{name}: {reason}", "  ", "    ")
    return "\n".join(lines) + "\n"


def _by_title(options: Iterable[Option]) -> dict[str, list[Option]]:
    """Options under the titles that help shows, none of them empty."""
    titles: dict[str, list[Option]] = {title: [] for title in (*_TITLES.values(), *_TRAINING_TITLES)}
    for option in options:
        titles.setdefault(_title(option), []).append(option)
    return {title: group for title, group in titles.items() if group}


def _title(option: Option) -> str:
    if option.group in _TITLES:
        return _TITLES[option.group]
    return next((title for title, names in _TRAINING_TITLES.items() if option.name.startswith(names)), "Other")


def _describe(option: Option) -> str:
    state = "required" if option.required else f"default: {_show(option.default)}"
    with in_english():
        return f"{option.help} ({option.allowed()}; {state})"


def _show(default: Any) -> str:
    if default is None:
        return "unset"
    return default if isinstance(default, str) and default else json.dumps(default)


def _fill(text: str, indent: str, hanging: str = "") -> list[str]:
    least, most = _WIDTHS
    width = min(max(shutil.get_terminal_size().columns, least), most)
    return textwrap.wrap(" ".join(text.split()), width, initial_indent=indent, subsequent_indent=indent + hanging)

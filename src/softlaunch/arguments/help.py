"""The text of `--help`."""

import json
import sys
import textwrap
from pathlib import Path
from typing import Any

from softlaunch.arguments.old_names import current_options, idle_names, old_names
from softlaunch.arguments.options import Option

_WIDTH = 100
_TITLES = {
    "model": "Base model",
    "tuning": "What is trained",
    "data": "Data and generated answers",
    "classification": "Classes of texts",
    "training": "Training, evaluation, checkpoints (all of transformers' Seq2SeqTrainingArguments)",
}


def format_help(description: str = "") -> str:
    """All options by group with type, limits and default, then the old names that are still accepted."""
    script = Path(sys.argv[0]).name
    lines = [f"usage: {script} [RUN.json] [--option value …]", ""]
    lines += [*_fill(description, ""), ""] if description else []
    lines += _fill(
        "RUN.json holds options as one JSON object; flags win over it. --option alone and --no_option switch on and "
        "off, null unsets. Relative paths are relative to the current directory.",
        "",
    )
    for group, title in _TITLES.items():
        lines += ["", f"{title}:"]
        for option in current_options().values():
            if option.group == group:
                lines += [f"  --{option.name}", *_fill(_describe(option), "      ")]
    lines += ["", "Old names, still accepted:"]
    lines += [f"  --{name}: now --{new}" for name, new in old_names().items()]
    lines += ["", "Accepted without effect:"]
    lines += [f"  --{name}: {reason}" for name, reason in idle_names().items()]
    return "\n".join(lines) + "\n"


def _describe(option: Option) -> str:
    state = "required" if option.required else f"default: {_show(option.default)}"
    return f"{option.help} ({option.allowed()}; {state})"


def _show(default: Any) -> str:
    if default is None:
        return "unset"
    return default if isinstance(default, str) and default else json.dumps(default)


def _fill(text: str, indent: str) -> list[str]:
    return textwrap.wrap(" ".join(text.split()), _WIDTH, initial_indent=indent, subsequent_indent=indent)

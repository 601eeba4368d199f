"""Arguments of a run: five groups of options, read strictly from a JSON file and flags.

Names are those of the original ChatGLM scripts and of transformers' Seq2SeqTrainingArguments. An option is a field of
one of the five dataclasses in `groups`; nothing else need be told of a new one.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from softlaunch.arguments.groups import (
        Arguments,
        ClassificationArguments,
        DataArguments,
        ModelArguments,
        TrainingArguments,
        TuningArguments,
    )
    from softlaunch.arguments.parse import parse_arguments, parse_model_and_data

__all__ = [
    "Arguments",
    "ClassificationArguments",
    "DataArguments",
    "ModelArguments",
    "TrainingArguments",
    "TuningArguments",
    "parse_arguments",
    "parse_model_and_data",
]


def __getattr__(name: str) -> Any:
    """Import the dataclasses where they are used: they need transformers, which commands that only look do not."""
    if name not in __all__:
        raise AttributeError(name)
    return getattr(import_module(f"{__name__}.{'parse' if name.startswith('parse_') else 'groups'}"), name)

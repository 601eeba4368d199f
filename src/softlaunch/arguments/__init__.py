"""Arguments of a run: five groups of options, read strictly from a JSON file and flags.

Names are those of the original ChatGLM scripts and of transformers' Seq2SeqTrainingArguments. An option is a field of
one of the five dataclasses in `groups`; nothing else need be told of a new one.
"""

import logging
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
    from softlaunch.arguments.parse import parse_arguments, parse_to_look

__all__ = [
    "Arguments",
    "ClassificationArguments",
    "DataArguments",
    "ModelArguments",
    "TrainingArguments",
    "TuningArguments",
    "parse_arguments",
    "parse_to_look",
]


def __getattr__(name: str) -> Any:
    """Import the dataclasses where they are used: they need transformers, which commands that only look do not.

    It brings bitsandbytes with it, which asks for an optional kernel at every start, quantized base or not:
    not here.
    """
    if name not in __all__:
        raise AttributeError(name)
    asking = logging.getLogger("bitsandbytes")
    level = asking.level
    asking.setLevel(logging.ERROR)
    try:
        return getattr(import_module(f"{__name__}.{'parse' if name.startswith('parse_') else 'groups'}"), name)
    finally:
        asking.setLevel(level)

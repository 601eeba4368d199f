"""Arguments of a run: five groups of options, read strictly from a JSON file and flags.

Names are those of the original ChatGLM scripts and of transformers' Seq2SeqTrainingArguments. An option is a field of
one of the five dataclasses in `groups`; nothing else need be told of a new one.
"""

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

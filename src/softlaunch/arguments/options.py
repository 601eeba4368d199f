"""Every option as data: its name, what it accepts, its help; and the strict conversion of a given value.

JSON values must have the option's type: `"10"` is no number. On the command line the same value is written as text.
"""

import dataclasses
import difflib
import json
import math
import re
import types
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from softlaunch.arguments.groups import (
    ClassificationArguments,
    DataArguments,
    ModelArguments,
    TrainingArguments,
    TuningArguments,
)
from softlaunch.messages import say

GROUPS = {
    "model": ModelArguments,
    "tuning": TuningArguments,
    "data": DataArguments,
    "classification": ClassificationArguments,
    "training": TrainingArguments,
}

# transformers checks few of its numbers; a value outside of these fails late or, worse, trains nonsense.
_TRAINING_LIMITS: dict[str, dict[str, Any]] = {
    "per_device_train_batch_size": {"minimum": 1},
    "per_device_eval_batch_size": {"minimum": 1},
    "gradient_accumulation_steps": {"minimum": 1},
    "eval_accumulation_steps": {"minimum": 1},
    "num_train_epochs": {"above": 0},
    "max_steps": {"minimum": -1},
    "learning_rate": {"minimum": 0},
    "weight_decay": {"minimum": 0},
    "adam_beta1": {"minimum": 0, "below": 1},
    "adam_beta2": {"minimum": 0, "below": 1},
    "adam_epsilon": {"above": 0},
    "max_grad_norm": {"minimum": 0},
    "warmup_steps": {"minimum": 0},
    "logging_steps": {"above": 0},
    "eval_steps": {"above": 0},
    "save_steps": {"above": 0},
    "save_total_limit": {"minimum": 1},
    "dataloader_num_workers": {"minimum": 0},
    "dataloader_prefetch_factor": {"minimum": 1},
    "seed": {"minimum": 0},
    "data_seed": {"minimum": 0},
    "ddp_timeout": {"above": 0},
}

_KINDS = {bool: "bool", int: "int", float: "float", str: "str", Path: "str", list: "list", dict: "dict"}


class Refused(Exception):
    """A value that an option does not accept; the message says what is allowed."""


@dataclasses.dataclass(frozen=True)
class Option:
    """One field of one group. `kinds` are the JSON types that it accepts, `choices` limit text, numbers and items."""

    name: str
    group: str
    kinds: frozenset[str]
    default: Any
    help: str
    required: bool = False
    choices: tuple[Any, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None

    def allowed(self) -> str:
        """What may be given, as the end of a sentence that begins with "must be"."""
        choices = ", ".join(str(choice) for choice in self.choices)
        if choices and "list" not in self.kinds:
            what = say("one of {choices}", choices=choices)
        elif choices:
            what = say("a list of {choices}", choices=choices)
        else:
            what = say(" or ").join(self._kind_names())
        return " ".join([what, say(" and ").join(self._limits())]).strip()

    def _kind_names(self) -> list[str]:
        names = {
            "bool": say("true or false"),
            "int": say("a whole number"),
            "float": say("a number"),
            "str": say("text"),
            "list": say("a list of texts"),
            "dict": say("a JSON object"),
        }
        if "float" in self.kinds:
            del names["int"]
        return [name for kind, name in names.items() if kind in self.kinds]

    def _limits(self) -> list[str]:
        limits = []
        if self.minimum is not None:
            limits.append(say("at least {bound:g}", bound=self.minimum))
        if self.above is not None:
            limits.append(say("above {bound:g}", bound=self.above))
        if self.maximum is not None:
            limits.append(say("at most {bound:g}", bound=self.maximum))
        if self.below is not None:
            limits.append(say("below {bound:g}", bound=self.below))
        return limits


def from_json(option: Option, value: Any) -> Any:
    """`value` as read from JSON if `option` accepts it, else Refused. A whole number stays one where a float may be."""
    kind = "null" if value is None else _KINDS[type(value)]
    if kind not in option.kinds and not (kind == "int" and "float" in option.kinds):
        if kind == "str" and option.kinds & {"bool", "int", "float"} and _parse_text(option, value) is not None:
            raise Refused(say("must be {allowed}, without quotes", allowed=option.allowed()))
        raise _must_be(option)
    _check(option, value)
    return value


def from_text(option: Option, texts: list[str]) -> Any:
    """The value that the words after a flag stand for; raises Refused.

    A bare flag is true; `null` unsets an option that may be unset; several words make a list; text that begins with
    `{` is a JSON object where the option takes one.
    """
    value: Any
    if not texts:
        if "bool" not in option.kinds:
            raise Refused(say("needs a value: {allowed}", allowed=option.allowed()))
        return True
    if len(texts) == 1 and texts[0] == "null" and "null" in option.kinds:
        return None
    if "list" in option.kinds and (len(texts) > 1 or "str" not in option.kinds):
        value = texts
    elif len(texts) > 1:
        raise Refused(say("takes one value, not {number} ({allowed})", number=len(texts), allowed=option.allowed()))
    else:
        value = _parse_text(option, texts[0])
        if value is None:
            raise _must_be(option)
    _check(option, value)
    return value


def _parse_text(option: Option, text: str) -> Any:
    """The first reading of `text` that suits the option's kinds; None if there is none."""
    if "bool" in option.kinds and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if option.kinds & {"int", "float"} and re.fullmatch(r"[+-]?[0-9]+", text):
        return int(text)
    if "float" in option.kinds:
        try:
            return float(text)
        except ValueError:
            pass
    if "dict" in option.kinds and text.lstrip().startswith("{"):
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise Refused(say("is no valid JSON object: {error}", error=error)) from None
    return text if "str" in option.kinds else None


def _check(option: Option, value: Any) -> None:
    """Raises Refused for a value of the right type that is out of range or no choice."""
    if isinstance(value, list) and not all(isinstance(item, str) for item in value):
        raise _must_be(option)
    items = value if isinstance(value, list) else [value]
    limited = option.choices and (isinstance(value, list) or "list" not in option.kinds)
    wrong = [item for item in items if item not in option.choices] if limited and value is not None else []
    if wrong:
        near = difflib.get_close_matches(str(wrong[0]), [str(choice) for choice in option.choices], n=1)
        if near:
            raise Refused(say("must be {allowed}; did you mean {near}?", allowed=option.allowed(), near=near[0]))
        raise _must_be(option)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    in_range = (
        math.isfinite(value)
        and (option.minimum is None or value >= option.minimum)
        and (option.maximum is None or value <= option.maximum)
        and (option.above is None or value > option.above)
        and (option.below is None or value < option.below)
    )
    if not in_range:
        raise _must_be(option)


def _must_be(option: Option) -> Refused:
    return Refused(say("must be {allowed}", allowed=option.allowed()))


@cache
def all_options() -> dict[str, Option]:
    """Every option by name, in the order of the groups and of their fields."""
    options: dict[str, Option] = {}
    for group, kind in GROUPS.items():
        hints = get_type_hints(kind)
        for field in dataclasses.fields(kind):
            option = _read_field(group, field, hints[field.name])
            if option is not None:
                assert option.name not in options, f"two groups have a field {option.name}"
                options[option.name] = option
    return options


def _read_field(group: str, field: dataclasses.Field, annotation: Any) -> Option | None:
    """The option that a dataclass field stands for; None where no text or JSON value can be given for it."""
    kinds, choices = _read_annotation(annotation)
    if not field.init or kinds <= {"null"}:
        return None
    if field.metadata.get("const") is True:  # declared as text by transformers, but a bare flag means true
        kinds.add("bool")
    if field.name.endswith("kwargs"):  # "or text" in transformers means JSON text; elsewhere it is a path
        kinds.discard("str")
    limits = {name: field.metadata.get(name) for name in ("minimum", "maximum", "above", "below")}
    if group == "training":
        limits.update(_TRAINING_LIMITS.get(field.name, {}))
    default = field.default
    if default is dataclasses.MISSING:
        default = None if field.default_factory is dataclasses.MISSING else field.default_factory()
    return Option(
        name=field.name,
        group=group,
        kinds=frozenset(kinds),
        default=default,
        help=field.metadata.get("help", "").replace("%%", "%"),  # argparse's escape
        required=field.metadata.get("required", False),
        choices=tuple(field.metadata.get("choices", ())) or choices,
        **limits,
    )


def _read_annotation(annotation: Any) -> tuple[set[str], tuple[Any, ...]]:
    """The JSON kinds and the choices of a type: a union's are those of its members, an enum's its values."""
    origin, members = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        parts = [_read_annotation(member) for member in members]
        return set().union(*(kinds for kinds, _ in parts)), tuple(c for _, choices in parts for c in choices)
    if annotation is types.NoneType:
        return {"null"}, ()
    if origin is Literal:  # transformers has one, `Literal[False]` beside text: choices would bar the text
        return {_KINDS[type(member)] for member in members}, ()
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return {"str"}, tuple(member.value for member in annotation)
    if origin is list:
        return {"list"}, _read_annotation(members[0])[1]
    kind = _KINDS.get(origin or annotation)
    return ({kind} if kind else set()), ()

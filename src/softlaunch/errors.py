"""The errors that mean "the user can mend this".

A message says what is wrong, the value found, what is allowed, and what to do next. Entry points print the message
alone and exit with code 2 (see `softlaunch.entry`); any other exception is a defect and keeps its traceback.
"""

from typing import Any

from softlaunch.messages import say


class UserError(ValueError):
    """Base of the family; raise one of its children.

    The message is `say(template, **values)`. One that is composed of several parts is given whole, its parts said.
    """

    def __init__(self, template: str, /, **values: Any):
        super().__init__(say(template, **values))


class ArgumentError(UserError):
    """An argument file or flag: unknown name, wrong type, value out of range, options that exclude each other."""


class DataError(UserError):
    """A data file: missing, wrongly encoded, or with rows that cannot be used."""


class CheckpointError(UserError):
    """A model or adapter directory: incomplete, of another kind, or made for another base."""


class LaunchError(UserError):
    """The way the processes were started does not fit the run."""

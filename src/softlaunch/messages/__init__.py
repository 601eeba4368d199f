"""What users are told, in their language: English in the code, another language in a catalogue beside this file.

A catalogue `zh.json` maps each English template to its translation. A template is a constant where it is said, so that
a test can hold the catalogue against the code; a message of several parts is put together from parts that are said.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

_CATALOGUES = Path(__file__).parent
_UNTRANSLATED = ("C", "POSIX")
_english = ContextVar("_english", default=False)


def say(template: str, /, **values: Any) -> str:
    """`template` in the user's language (else English), with `values` in its places: `{name}`, `{name!r}`, `{name:,}`.

    Without values it is taken as it stands, braces included.
    """
    text = _catalogue(language()).get(template, template)
    return text.format(**values) if values else text


@contextmanager
def in_english() -> Iterator[None]:
    """English whatever the user's language: for texts such as `--help`, of which only a part is in the catalogue."""
    token = _english.set(True)
    try:
        yield
    finally:
        _english.reset(token)


def clock(seconds: float) -> str:
    """A duration: `0:42`, `12:07` or `3:05:00`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def language() -> str:
    """The two letters of the user's language, `en` if the environment names none.

    As gettext finds it: the first of LC_ALL, LC_MESSAGES and LANG that is set, or, unless that is the C locale, the
    first language of LANGUAGE that there is a catalogue for.
    """
    if _english.get():
        return "en"
    locale = next(filter(None, map(os.environ.get, ("LC_ALL", "LC_MESSAGES", "LANG"))), "C")
    if locale.partition(".")[0] in _UNTRANSLATED:
        return "en"
    asked = [name[:2].lower() for name in (*os.environ.get("LANGUAGE", "").split(":"), locale) if name]
    return next((name for name in asked if name == "en" or _file(name).is_file()), "en")


def _file(language: str) -> Path:
    return _CATALOGUES / f"{language}.json"


@cache
def _catalogue(language: str) -> dict[str, str]:
    return {} if language == "en" else json.loads(_file(language).read_text(encoding="utf-8"))

"""What users are told, in their language: English in the code, another language in a catalogue beside this file."""

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

_CATALOGUES = Path(__file__).parent


def say(template: str, **values: Any) -> str:
    """`template` in the user's language (else English) with `values` in its places, `{name}` or `{name!r}`."""
    return _catalogue(language()).get(template, template).format(**values)


def language() -> str:
    """The two letters of the user's language, by the first of the locale's variables that is set; `en` if none is."""
    variables = ("LC_ALL", "LC_MESSAGES", "LANG")
    found = next((value for value in map(os.environ.get, variables) if value), "en")
    return found[:2].lower()


@cache
def _catalogue(language: str) -> dict[str, str]:
    file = _CATALOGUES / f"{language}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

"""Reads what was given: a JSON file, flags, or both. Nothing is interpreted here."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softlaunch.arguments.redact import redact
from softlaunch.errors import ArgumentError
from softlaunch.messages import say

_SHOWN_CHARS = 100


@dataclass(frozen=True)
class Given:
    """One value as it was given: a JSON value of the key `name` in `file`, or the words after the flag `--name`."""

    name: str
    value: Any
    file: str | None = None

    @property
    def where(self) -> str:
        """`run.json: name` or `--name`."""
        return f"{self.file}: {self.name}" if self.file else f"--{self.name}"

    @property
    def setting(self) -> str:
        """`name = value` or `--name value`, shortened and without secrets."""
        value = redact(self.value, self.name)
        if self.file:
            text = f"{self.name} = {json.dumps(value, ensure_ascii=False)}"
        else:
            text = " ".join([f"--{self.name}", *([value] if isinstance(value, str) else value)])
        return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "…"

    @property
    def shown(self) -> str:
        """`setting` with the file that it stands in, for messages."""
        return f"{self.file}: {self.setting}" if self.file else self.setting


def read_sources(argv: list[str]) -> tuple[list[Given], list[str]]:
    """What `argv` gives, in the order in which later values win, and warnings for what it gives twice.

    Raises ArgumentError if the argument file cannot be read or a word belongs to no flag: what was meant by the rest
    is then anybody's guess.
    """
    given: list[Given] = []
    warnings: list[str] = []
    if argv and not argv[0].startswith("-"):
        given = _read_file(argv[0], warnings)
        argv = argv[1:]
    return given + _read_flags(argv, warnings), warnings


def _read_file(path: str, warnings: list[str]) -> list[Given]:
    repeated: list[tuple[dict[str, Any], str, Any]] = []

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                repeated.append((found, key, found[key]))
            found[key] = value
        return found

    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ArgumentError(
            "{path}: there is no such argument file (looked from {directory})", path=path, directory=Path.cwd()
        ) from None
    except UnicodeDecodeError as error:
        raise ArgumentError(
            "{path}: an argument file must be UTF-8: {error}; save it as UTF-8", path=path, error=error
        ) from None
    except OSError as error:
        raise ArgumentError(
            "{path}: the argument file cannot be read: {strerror}", path=path, strerror=error.strerror
        ) from None
    try:
        values = json.loads(text, object_pairs_hook=collect)
    except json.JSONDecodeError as error:
        hint = say("; is this a file of rows? Name it as train_file instead") if error.msg == "Extra data" else ""
        raise ArgumentError(
            "{path}:{lineno}:{colno}: the argument file is no valid JSON: {msg}{hint}",
            path=path,
            lineno=error.lineno,
            colno=error.colno,
            msg=error.msg,
            hint=hint,
        ) from None
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits, thousands of brackets
        raise ArgumentError("{path}: the argument file cannot be read: {error}", path=path, error=error) from None
    if not isinstance(values, dict):
        raise ArgumentError(
            '{path}: an argument file holds one JSON object, {{"option": value, …}}, not {kind}',
            path=path,
            kind=type(values).__name__,
        )
    for owner, key, first in repeated:
        if owner is values:
            first, last = (json.dumps(redact(value, key), ensure_ascii=False) for value in (first, owner[key]))
            warnings.append(
                say(
                    "{path}: {key} is given more than once: first {first}, last {last}; the last one counts",
                    path=path,
                    key=key,
                    first=first,
                    last=last,
                )
            )
        else:  # inside a nested object the values may belong to a secret that only the outer key tells of
            warnings.append(say("{path}: {key} is given more than once; the last one counts", path=path, key=key))
    return [Given(key, value, path) for key, value in values.items()]


def _read_flags(argv: list[str], warnings: list[str]) -> list[Given]:
    found: list[tuple[str, list[str]]] = []
    for token in argv:
        if token.startswith("--") and len(token) > 2:
            name, equals, text = token[2:].partition("=")
            found.append((name.replace("-", "_"), [text] if equals else []))
        elif found:
            found[-1][1].append(token)
        else:
            raise ArgumentError(
                "'{token}' belongs to no option; write RUN.json --option value …, the file first (--help lists all)",
                token=token,
            )
    for name, times in Counter(name for name, _ in found).items():
        if times > 1:
            warnings.append(say("--{name} is given {times} times: the last one counts", name=name, times=times))
    return [Given(name, words) for name, words in dict(found).items()]

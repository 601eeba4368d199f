"""Which rows can be used, and what to say about the others."""

import json
import logging
import reprlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from softlaunch.data.sources import TABLES, BadRow, place, refuse_argument_file
from softlaunch.errors import DataError
from softlaunch.messages import say

logger = logging.getLogger(__name__)

_MAX_SHOWN = 5  # offenders listed per kind

Turns = list[list[str]]


@dataclass(frozen=True)
class Columns:
    """The columns to take from every row; `history` None where there is none."""

    prompt: str
    response: str
    history: str | None
    require_response: bool


def check_row(fields: dict[str, Any], columns: Columns) -> tuple[str, str, Turns] | BadRow:
    """`(prompt, response, history)` of one row, or what is wrong with it.

    A missing history is []; where no response is required, a missing one is "".
    """
    problem = text_problem(fields, columns.prompt, required=True) or text_problem(
        fields, columns.response, required=columns.require_response
    )
    if problem:
        return problem
    history = _history(fields, columns.history) if columns.history else []
    if isinstance(history, BadRow):
        return history
    return fields[columns.prompt], fields.get(columns.response) or "", history


def require_columns(path: Path, rows: list[dict[str, Any]], needed: Iterable[str], advice: str) -> None:
    """Stops if a column occurs in none of `rows`, the first of the file: then its name is wrong, not the rows.

    Raises:
        DataError: with the columns that there are, the nearest of their names, and `advice`.
    """
    found = list(dict.fromkeys(name for row in rows for name in row))
    missing = [name for name in needed if name not in found]
    if not rows or not missing:
        return
    refuse_argument_file(path, rows[0])
    columns = ", ".join(f'"{name}"' for name in found)
    near = get_close_matches(missing[0], found, n=1)
    raise DataError(
        '{path} has no column "{column}". Its columns are: {columns}. {hint}',
        path=path,
        column=missing[0],
        columns=columns,
        hint=_other_separator(path, found) or (say('Did you mean "{near}"?', near=near[0]) if near else advice),
    )


def _other_separator(path: Path, found: list[str]) -> str | None:
    """What to say of a table that another character divides into columns than its name says."""
    own = TABLES.get(path.suffix.lower())
    other = next((c for c in ";|\t," if c in found[0] and c != own), None) if own and len(found) == 1 else None
    if other is None:
        return None
    return say(
        "It seems to have {found!r} between its columns; a {suffix} file has {own!r} there.",
        found=other,
        suffix=path.suffix,
        own=own,
    )


Kind = tuple[str, str]  # kind and column of a BadRow


def say_kind(kind: Kind) -> str:
    """What is wrong with rows of this kind, in the user's language."""
    template, column = kind
    return say(template, column=column)


def log_dropped(path: Path, num_rows: int, counts: Collection[tuple[Kind, int]]) -> None:
    """Says how many rows of a file were left out, and why."""
    if counts:
        kinds = "; ".join(f"{count:,} × {say_kind(kind)}" for kind, count in counts)
        dropped = sum(count for _, count in counts)
        logger.warning(
            say(
                "{path}: dropped {dropped:,} of {all:,} rows: {kinds}",
                path=path,
                dropped=dropped,
                all=num_rows,
                kinds=kinds,
            )
        )


@dataclass
class Problems:
    """The bad rows of one file: how many of each kind, and where the first ones stand."""

    num_rows: int = 0  # rows read, good ones included
    has_history: bool = False  # any row with a column of that name
    counts: Counter[Kind] = field(default_factory=Counter)
    _shown: defaultdict[Kind, list[tuple[int, str]]] = field(default_factory=lambda: defaultdict(list))

    def add(self, number: int, bad: BadRow) -> None:
        """Counts a bad record of this number (see `sources`)."""
        kind = (bad.kind, bad.column)
        self.counts[kind] += 1
        if self.counts[kind] <= _MAX_SHOWN:
            self._shown[kind].append((number, bad.detail))

    def extend(self, later: "Problems", line: int) -> None:
        """Adds those of the rows that follow, whose numbers are counted from `line`."""
        for kind, count in later.counts.items():
            places = [(line + number, detail) for number, detail in later._shown[kind]]
            self._shown[kind] = [*self._shown[kind], *places][:_MAX_SHOWN]
            self.counts[kind] += count
        self.num_rows += later.num_rows
        self.has_history = self.has_history or later.has_history

    def error(self, path: Path) -> DataError:
        """The error that lists them."""
        num_bad = self.counts.total()
        lines = [say("{path}: {bad:,} of {all:,} rows cannot be used.", path=path, bad=num_bad, all=self.num_rows)]
        for kind, count in self.counts.most_common():
            lines.append(f"{count:,} × {say_kind(kind)}")
            lines += [f"  {place(path, number)}" + (detail and f": {detail}") for number, detail in self._shown[kind]]
            if count > _MAX_SHOWN:
                lines.append(say("  and {number:,} more", number=count - _MAX_SHOWN))
        if num_bad < self.num_rows:
            lines.append(say("Mend these rows, or set skip_bad_rows to drop them."))
        return DataError("\n".join(lines))


def text_problem(fields: dict[str, Any], name: str, *, required: bool) -> BadRow | None:
    value = fields.get(name)
    if isinstance(value, str):
        if required and not value.strip():
            return BadRow('"{column}" is empty', column=name)
        return None if is_unicode(value) else _half_character(name)
    if value is not None:
        return _not_a_string(name, value)
    if not required:
        return None
    return BadRow('"{column}" is null', column=name) if name in fields else BadRow('no "{column}"', column=name)


def _not_a_string(name: str, value: Any) -> BadRow:
    detail = reprlib.repr(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        detail = say('the number {shown}; as text: "{shown}"', shown=detail)
    return BadRow('"{column}" is not a string', detail, column=name)


def _half_character(name: str) -> BadRow:
    return BadRow('"{column}" holds half a character (an unpaired surrogate, such as \\ud83d)', column=name)


def is_unicode(text: str) -> bool:
    """Whether the text can be stored and tokenized: JSON can spell one half of a surrogate pair, UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _history(fields: dict[str, Any], name: str) -> Turns | BadRow:
    value = fields.get(name)
    if isinstance(value, str):  # a CSV cell holds the pairs as JSON
        try:
            value = json.loads(value) if value.strip() else []
        except (ValueError, RecursionError):
            return _bad_history(name, value)
    if value is None:
        return []
    if not isinstance(value, list) or not all(_is_pair(pair) for pair in value):
        return _bad_history(name, value)
    if not all(is_unicode(text) for pair in value for text in pair):
        return _half_character(name)
    return value


def _is_pair(pair: Any) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) and isinstance(pair[1], str)


def _bad_history(name: str, value: Any) -> BadRow:
    return BadRow('"{column}" is no list of pairs of strings, [["question", "answer"], …]', reprlib.repr(value), name)

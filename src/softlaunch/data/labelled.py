"""Files of texts and their classes as checked rows: every format of `sources`, and tables without a header.

A `.csv` has commas and quotes; `.tsv` and `.txt` have tabs, and a quotation mark in them is a character like any other.
"""

import csv
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from softlaunch.data.check import Problems, require_columns, text_problem
from softlaunch.data.sources import TABLES, BadRow, Record, csv_lines, records, require_source
from softlaunch.data.text_encoding import encoding_error
from softlaunch.errors import DataError
from softlaunch.messages import say

_HEAD_ROWS = 100  # a column that occurs in none of these has the wrong name
_NUMBER = re.compile(r"\s*[+-]?\d+([.,]\d+)?\s*")


class LabelledRow(NamedTuple):
    """One row: its place among all rows of the file from 0, its line or row number (see `sources`), and its fields."""

    row_id: int
    number: int
    text: str
    pair: str | None
    label: str | None


@dataclass(frozen=True)
class LabelColumns:
    """Where text and class stand; `pair` None for single texts. Without `require_label` a row may have no class."""

    text: str
    label: str
    pair: str | None = None
    require_label: bool = True

    @property
    def needed(self) -> list[str]:
        """The columns that a file must have."""
        return [self.text, *([self.pair] if self.pair else []), *([self.label] if self.require_label else [])]


def read_labelled(
    path: Path, columns: LabelColumns, codec: str, loaded: Sequence[dict[str, Any]] | None = None
) -> tuple[list[LabelledRow], Problems]:
    """The good rows of a file or `datasets` directory, and what is wrong with the others.

    `loaded` are the rows themselves, where they do not come from a file.

    Raises DataError for what is wrong with the file as a whole: none there, a format, an encoding, a missing column, a
    text column that holds numbers, no row at all.
    """
    if loaded is None:
        require_source(path)
    found = _records(path, codec, columns) if loaded is None else enumerate(loaded)
    head = list(islice(found, _HEAD_ROWS))
    fields = [fields for _, fields in head if isinstance(fields, dict)]
    require_columns(path, fields, columns.needed, say("A file without a header has the columns 0, 1, …"))
    _refuse_numbers(path, fields, columns.text)
    problems, rows = Problems(), []
    for row_id, (number, record) in enumerate(chain(head, found)):
        problems.num_rows += 1
        row = record if isinstance(record, BadRow) else _check(row_id, number, record, columns)
        if isinstance(row, BadRow):
            problems.add(number, row)
        else:
            rows.append(row)
    if not problems.num_rows:
        raise DataError("{path} has no rows. A data file needs at least one.", path=path)
    return rows, problems


def _check(row_id: int, number: int, fields: dict[str, Any], columns: LabelColumns) -> LabelledRow | BadRow:
    for name in (columns.text, columns.pair):
        problem = text_problem(fields, name, required=True) if name else None
        if problem:
            return problem
    label = _label(fields.get(columns.label))
    if isinstance(label, BadRow) or (label is None and columns.require_label):
        return label or BadRow('"{column}" is empty', column=columns.label)
    return LabelledRow(row_id, number, fields[columns.text], fields[columns.pair] if columns.pair else None, label)


def _label(value: Any) -> str | BadRow | None:
    """A class as text: 3, 3.0 and "3" are the same."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float, type(None))):
        return BadRow("the class is neither a name nor a number", repr(value)[:80])
    if isinstance(value, float):  # a column of whole numbers with gaps, as pandas writes it
        value = None if value != value else int(value) if value.is_integer() else value
    return None if value is None else str(value).strip() or None


def _refuse_numbers(path: Path, rows: Sequence[dict[str, Any]], column: str) -> None:
    values = [str(row[column]) for row in rows if row.get(column) is not None]
    if values and all(_NUMBER.fullmatch(value) for value in values):
        raise DataError(
            '{path}: the text column "{column}" holds numbers, such as {value}, and no texts. Its columns are: '
            "{columns}. Set text_column and label_column",
            path=path,
            column=column,
            value=values[0],
            columns=", ".join(f'"{name}"' for name in rows[0]),
        )


def _records(path: Path, codec: str, columns: LabelColumns) -> Iterator[Record]:
    delimiter = TABLES.get(path.suffix.lower())
    if path.is_dir() or delimiter is None:
        return records(path, codec)
    try:
        with path.open(encoding=codec, newline="") as file:
            first = file.readline()
    except UnicodeDecodeError:
        raise encoding_error(path, codec) from None
    if not first.strip() or (path.suffix.lower() == ".txt" and _is_json_object(first)):
        return records(path, codec)
    return _table(path, codec, delimiter, columns)


def _is_json_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _table(path: Path, codec: str, delimiter: str, columns: LabelColumns) -> Iterator[Record]:
    """The rows of a table; where columns are asked for by number and not named so, the first line is a row too."""
    lines = _split_lines(path, codec, delimiter)
    number, first = next(lines)
    if isinstance(first, BadRow):
        yield number, first
        return
    header = [name.strip() for name in first]
    by_number = all(name.isdigit() for name in columns.needed)
    if by_number and not set(columns.needed) <= set(header):
        header = [str(index) for index in range(len(first))]
        lines = chain([(number, first)], lines)
    for number, values in lines:
        if isinstance(values, BadRow):
            yield number, values
        elif len(values) != len(header):
            detail = say("{found} instead of {expected}", found=len(values), expected=len(header))
            yield number, BadRow("not as many fields as the first line has", detail)
        else:
            yield number, dict(zip(header, values, strict=True))


def _split_lines(path: Path, codec: str, delimiter: str) -> Iterator[tuple[int, list[str] | BadRow]]:
    try:
        with path.open(encoding=codec, newline="" if delimiter == "," else None) as file:
            if delimiter != ",":
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        yield number, line.rstrip("\n").split(delimiter)
                return
            yield from csv_lines(csv.reader(file, strict=True))
    except UnicodeDecodeError:
        raise encoding_error(path, codec) from None

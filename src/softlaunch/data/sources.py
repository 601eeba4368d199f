"""Data files as streams of records, whatever their format; nothing here holds a whole file in memory.

A record is `(number, fields)`: the line on which the row begins, counted from 1 (for Parquet files, `datasets`
directories and hub names, which have no lines, the row, counted from 0), and either a dict of its fields or a `BadRow`
where the format itself is broken.
"""

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

from softlaunch.data.hub import hub_rows
from softlaunch.data.json_array import array_values
from softlaunch.data.text_encoding import encoding_error
from softlaunch.errors import DataError
from softlaunch.files import is_inside, read_json_object
from softlaunch.messages import say

_START_CHARACTERS = 1 << 16  # enough to know the format by, and to hold any argument file
_PARQUET_MAGIC = b"PAR1"
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
TABLES = {**_DELIMITERS, ".txt": "\t"}  # of texts and classes


@dataclass(frozen=True)
class BadRow:
    """Why a row cannot be used.

    `kind`, a template for `say` in which `{column}` may stand, is the same for all rows with the same fault; `detail`
    belongs to this one.
    """

    kind: str
    detail: str = ""
    column: str = ""


Record = tuple[int, dict[str, Any] | BadRow]


def is_json_lines(path: Path, codec: str) -> bool:
    """Whether `records` would read the file line by line. Raises DataError as `records` does."""
    try:
        reader = _reader(path, codec)
    except UnicodeDecodeError:
        raise encoding_error(path, codec) from None
    return isinstance(reader, partial) and reader.func is _json_lines


def require_source(path: Path) -> None:
    """Stops if there is nothing to read at `path`.

    Raises:
        DataError: no such file, a directory that is no saved dataset, or no such dataset on the hub.
    """
    if path.is_dir():
        _require_dataset_directory(path)
    elif not path.exists() and hub_rows(path) is None:
        raise _missing(path)


def records(path: Path, codec: str) -> Iterator[Record]:
    """Streams the records of a file, a `datasets` directory or a hub name (see `hub`).

    A file's content, then its suffix, tell the format.

    Raises:
        DataError: empty, of no known format, wrongly encoded, or broken beyond a single row.
    """
    try:
        yield from _reader(path, codec)(path)
    except UnicodeDecodeError:
        raise encoding_error(path, codec) from None


def place(path: Path, number: int) -> str:
    """`file:line` of a record, or `file:row N` where there are no lines."""
    return f"{path}:{number}" if path.is_file() and not _is_parquet(path) else f"{path}:row {number}"


def refuse_argument_file(path: Path, fields: dict[str, Any]) -> None:
    """Stops if these fields are those of a run's argument file and not of a row. Raises DataError."""
    if fields.keys().isdisjoint(("model_name_or_path", "train_file", "output_dir")):
        return
    named = fields.get("train_file")
    hint = say(' ("{named}", as it says itself)', named=named) if isinstance(named, str) else ""
    raise DataError(
        "{path} is an argument file of a run, not a file of rows. Give the file that holds the rows{hint}.",
        path=path,
        hint=hint,
    )


def _allowed() -> str:
    return say(
        "Allowed: JSON lines, one JSON array, CSV (.csv), TSV (.tsv), Parquet, a directory that save_to_disk wrote, a "
        "dataset's name on the hub."
    )


def _missing(path: Path) -> DataError:
    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = get_close_matches(path.name, names, n=1)
    return DataError(
        "The data file {path} does not exist (looked for {absolute}).{hint}",
        path=path,
        absolute=path.absolute(),
        hint=say(' In the same directory there is "{near}".', near=near[0]) if near else "",
    )


def _require_dataset_directory(path: Path) -> None:
    splits = read_json_object(path / "dataset_dict.json").get("splits")
    if isinstance(splits, list) and splits:
        raise DataError(
            "{path} holds several splits: {splits}. Give one, such as {first}.",
            path=path,
            splits=", ".join(map(str, splits)),
            first=path / str(splits[0]),
        )
    if not (path / "state.json").exists():
        raise DataError(
            "{path} is a directory, but not one that the save_to_disk of datasets wrote. {allowed}",
            path=path,
            allowed=_allowed(),
        )
    parts = read_json_object(path / "state.json").get("_data_files")
    names = [part.get("filename") for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
    if not all(isinstance(name, str) and is_inside(name) for name in names):
        raise DataError("{path}: state.json names files outside of its directory; do not use this data", path=path)


def _is_parquet(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_PARQUET_MAGIC)) == _PARQUET_MAGIC


def _reader(path: Path, codec: str) -> Callable[[Path], Iterator[Record]]:
    if path.is_dir():
        return _dataset_directory
    if not path.exists():
        return _hub_dataset
    if _is_parquet(path):
        return _parquet
    _refuse_binary(path)
    suffix = path.suffix.lower()
    with path.open(encoding=codec) as file:
        start = file.read(_START_CHARACTERS).lstrip()
    if not start:
        raise DataError("{path} is empty. A data file needs at least one row.", path=path)
    if suffix in _DELIMITERS:
        return partial(_delimited, codec=codec, delimiter=_DELIMITERS[suffix])
    if start.startswith("["):
        return partial(_json_array, codec=codec)
    if start.startswith("{"):
        _refuse_spread_object(path, start)
        return partial(_json_lines, codec=codec)
    raise DataError(
        "{path} is of an unknown format: it begins with {start!r}. {allowed}",
        path=path,
        start=start[:20],
        allowed=_allowed(),
    )


def _refuse_binary(path: Path) -> None:
    with path.open("rb") as file:
        magic = file.read(40)
    if magic.startswith(b"version https://git-lfs.github.com"):
        raise DataError(
            "{path} is a Git LFS pointer, not the data itself. Fetch the data with: git lfs pull", path=path
        )
    if magic.startswith((b"\x1f\x8b", b"PK\x03\x04")):
        raise DataError(
            "{path} is compressed (gzip, zip or Excel). Unpack it, or export it as CSV. {allowed}",
            path=path,
            allowed=_allowed(),
        )


def _refuse_spread_object(path: Path, start: str) -> None:
    """Stops at an object that spans several lines: an argument file, or rows that are not one to a line."""
    if start.partition("\n")[0].strip() != "{":
        return
    try:
        fields, end = json.JSONDecoder().raw_decode(start)
    except (ValueError, RecursionError):
        return  # broken: the reader of lines says where
    refuse_argument_file(path, fields)
    if start[end:].strip():
        raise DataError(
            "{path}: a row spans several lines. Write one row to a line, or the rows as one array: [{{…}}, {{…}}].",
            path=path,
        )
    raise DataError(
        "{path} is a single JSON object with {keys}. Write one row to a line, or the rows as one array.",
        path=path,
        keys=", ".join(f'"{key}"' for key in list(fields)[:10]),
    )


def _json_lines(path: Path, codec: str) -> Iterator[Record]:
    with path.open(encoding=codec, newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if not line.isspace():
                yield number, json_record(line)


def json_record(line: str) -> dict[str, Any] | BadRow:
    """The fields of one line of JSON lines, or what is wrong with it."""
    try:
        return _object(json.loads(line))
    except json.JSONDecodeError as error:
        return BadRow("broken JSON", say("{msg}, column {colno}", msg=error.msg, colno=error.colno))
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits, thousands of brackets
        return BadRow("broken JSON", str(error))


def _object(value: Any) -> dict[str, Any] | BadRow:
    if isinstance(value, dict):
        return value
    return BadRow("not a JSON object, such as {{…}}", say("found {kind}", kind=type(value).__name__))


def _json_array(path: Path, codec: str) -> Iterator[Record]:
    with path.open(encoding=codec, newline="") as file:
        for number, value in array_values(path, file):
            yield number, _object(value)


def _delimited(path: Path, codec: str, delimiter: str) -> Iterator[Record]:
    with path.open(encoding=codec, newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        header = _header(path, reader)
        for number, values in csv_lines(reader):
            yield number, values if isinstance(values, BadRow) else _named(header, values)


def csv_lines(reader: Any) -> Iterator[tuple[int, list[str] | BadRow]]:
    """What a reader of `csv` has still to read, each with the line on which it begins; blank lines are left out."""
    while True:
        number = reader.line_num + 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield number, BadRow("broken CSV", str(error))
            continue
        if values:
            yield number, values


def _header(path: Path, reader: Iterator[list[str]]) -> list[str]:
    try:
        header = next(reader)
    except csv.Error as error:
        raise DataError(
            "{path}:1: broken CSV in the header: {error}. The first line must name the columns.", path=path, error=error
        ) from None
    repeated = [name for name, count in Counter(header).items() if count > 1]
    if repeated:
        raise DataError(
            '{path}:1: the header names the column "{column}" more than once. Rename or drop one.',
            path=path,
            column=repeated[0],
        )
    return header


def _named(header: list[str], values: list[str]) -> dict[str, Any] | BadRow:
    if len(values) != len(header):
        detail = say("{found} instead of {expected}", found=len(values), expected=len(header))
        return BadRow("not as many fields as the header has", detail)
    return dict(zip(header, values, strict=True))


def _parquet(path: Path) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet

    try:
        batches = pa.parquet.ParquetFile(path).iter_batches(batch_size=1000)
        yield from enumerate(row for batch in batches for row in batch.to_pylist())
    except pa.ArrowInvalid as error:
        raise DataError("{path} is a damaged Parquet file: {error}", path=path, error=error) from None


def _dataset_directory(path: Path) -> Iterator[Record]:
    from datasets import load_from_disk

    try:
        rows = load_from_disk(str(path))
    except Exception as error:  # whatever datasets and Arrow raise over files that are not what they seem
        raise DataError("{path} cannot be read as a saved dataset: {error}", path=path, error=error) from error
    yield from enumerate(rows)


def _hub_dataset(path: Path) -> Iterator[Record]:
    yield from enumerate(hub_rows(path) or ())

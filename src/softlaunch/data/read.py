"""Data files to checked rows.

The rows of a file are checked once and written to an Arrow file in the cache of `datasets`, under a name made from
the file's content and the options. So a large file never lies in memory, every process of a run maps the same rows,
and what `Dataset.map` makes of them is cached beside them.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import astuple
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock

from softlaunch.data.check import Columns, Problems, check_row, log_dropped, require_columns
from softlaunch.data.hub import hub_rows
from softlaunch.data.parallel import Stretch, available_cores, can_split, run, split
from softlaunch.data.sources import BadRow, Record, is_json_lines, records, require_source
from softlaunch.data.text_encoding import codec_name, encoding_error
from softlaunch.errors import DataError
from softlaunch.messages import say

_CHECK_VERSION = 2  # raise it when the same file and options give other rows
_ROWS_FILE = "rows.arrow"
_DROPPED_FILE = "dropped.json"
_BATCH_ROWS = 1000
_HEAD_ROWS = 100  # a column that occurs in none of these has the wrong name


def read_rows(
    path: str | Path,
    *,
    prompt_column: str,
    response_column: str,
    history_column: str | None = None,
    file_encoding: str = "utf-8",
    skip_bad_rows: bool = False,
    max_rows: int | None = None,
    require_response: bool = True,
    cache_dir: str | Path | None = None,
    num_workers: int | None = None,
) -> datasets.Dataset:
    """Reads and checks a file of prompts and responses: JSON lines, a JSON array, CSV, TSV, Parquet, `save_to_disk`.

    Args:
        path: the file, the directory that `Dataset.save_to_disk` wrote, or a name on the hub (see `hub`).
        prompt_column: name of the column of prompts; an empty prompt is a bad row.
        response_column: name of the column of responses; an empty or missing one is a bad row if `require_response`.
        history_column: name of the column of earlier turns, lists of [question, answer]; null or missing means none.
        file_encoding: how text files are encoded. A byte order mark and CRLF are fine.
        skip_bad_rows: drops bad rows and logs how many of each kind, in place of an error.
        max_rows: takes the first so many good rows and reads no further.
        require_response: False for rows that are only to be answered: an empty or missing response becomes "".
        cache_dir: where the checked rows are kept; by default where `datasets` keeps its own (HF_DATASETS_CACHE).
        num_workers: processes that check a large file of JSON lines; as many as there are cores if not given.

    Returns:
        A memory-mapped dataset with the columns `row_id` (int64, the place of the row among all rows of the file, from
        0, bad ones counted), `prompt`, `response` (strings) and, if asked for, `history` (list of pairs of strings).
        Several processes may read the same file at once.

    Raises:
        DataError: no such file, a wrong format or encoding, a missing column, or bad rows; it names `file:line`.
        ArgumentError: `file_encoding` is no text encoding.
    """
    assert max_rows is None or max_rows > 0
    num_workers = num_workers or available_cores()
    path = Path(path)
    codec = codec_name(file_encoding)
    require_source(path)
    columns = Columns(prompt_column, response_column, history_column, require_response)
    options = [_CHECK_VERSION, path.suffix.lower(), codec, astuple(columns), skip_bad_rows, max_rows]
    key = f"{_content_digest(path)}-{hashlib.sha256(json.dumps(options).encode()).hexdigest()[:16]}"
    directory = Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / "softlaunch" / key
    if not (directory / _ROWS_FILE).exists():
        directory.mkdir(parents=True, exist_ok=True)
        with FileLock(directory / "lock"):
            if not (directory / _ROWS_FILE).exists():  # another process may have written it while we waited
                _write_good_rows(directory, path, codec, columns, skip_bad_rows, max_rows, num_workers)
    log_dropped(path, **json.loads((directory / _DROPPED_FILE).read_text()))
    return datasets.Dataset.from_file(str(directory / _ROWS_FILE))


def _content_digest(path: Path) -> str:
    """A hash of the file; of a saved dataset, of its state, which holds a fingerprint that every change renews.

    Of a hub name, the fingerprint itself.
    """
    digest = hashlib.sha256()
    if not path.exists():
        return str(getattr(hub_rows(path), "_fingerprint", ""))
    with (path / "state.json" if path.is_dir() else path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:32]


def _write_good_rows(
    directory: Path,
    path: Path,
    codec: str,
    columns: Columns,
    skip_bad_rows: bool,
    max_rows: int | None,
    num_workers: int,
) -> None:
    """Leaves `rows.arrow` and `dropped.json` in `directory`, or raises and leaves neither."""
    incomplete = directory / f"{_ROWS_FILE}.incomplete"
    is_split = max_rows is None and num_workers > 1 and can_split(path, codec) and is_json_lines(path, codec)
    try:
        if is_split:
            num_written, problems = _check_in_parallel(incomplete, path, codec, columns, num_workers)
        else:
            num_written, problems = _check(incomplete, path, columns, records(path, codec), max_rows)
        if columns.history and not problems.has_history:
            head = _fields(list(islice(records(path, codec), _HEAD_ROWS)))
            require_columns(path, head, [columns.history], say("Leave history_column out if no row has a history."))
        if problems.counts and not (skip_bad_rows and num_written):
            raise problems.error(path)
        if not num_written:
            raise DataError("{path} has no rows. A data file needs at least one.", path=path)
        dropped = {"num_rows": problems.num_rows, "counts": list(problems.counts.items())}
        (directory / _DROPPED_FILE).write_text(json.dumps(dropped))
        incomplete.replace(directory / _ROWS_FILE)
    finally:
        for left in directory.glob(f"{incomplete.name}*"):
            left.unlink()


def _check(
    target: Path, path: Path, columns: Columns, found: Iterator[Record], max_rows: int | None = None
) -> tuple[int, Problems]:
    """Writes the good ones of the records to `target`; returns how many they are, and the problems of the others."""
    problems = Problems()
    rows = islice(_good_rows(path, columns, found, problems), max_rows)
    return _write_arrow(target, rows, with_history=columns.history is not None), problems


def _check_in_parallel(
    target: Path, path: Path, codec: str, columns: Columns, num_workers: int
) -> tuple[int, Problems]:
    """As `_check`, of a file of JSON lines."""
    stretches = split(path, codec, num_workers)
    try:
        results = run(partial(_check_stretch, target, columns), stretches)
    except UnicodeDecodeError:
        raise encoding_error(path, codec) from None
    problems, line = Problems(), 0
    with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_stream(sink, _schema(columns.history is not None)) as writer:
        for index, (stretch, (_, later)) in enumerate(zip(stretches, results, strict=True)):
            part = _part(target, index)
            with pa.memory_map(str(part)) as source, pa.ipc.open_stream(source) as reader:
                for batch in reader:
                    writer.write_batch(batch.set_column(0, "row_id", pc.add(batch["row_id"], problems.num_rows)))
            part.unlink()
            problems.extend(later, line)
            line += stretch.num_lines()
    return sum(num_written for num_written, _ in results), problems


def _check_stretch(target: Path, columns: Columns, index: int, stretch: Stretch) -> tuple[int, Problems]:
    return _check(_part(target, index), stretch.path, columns, stretch.records())


def _part(target: Path, index: int) -> Path:
    return target.with_name(f"{target.name}-{index}")


def _good_rows(path: Path, columns: Columns, found: Iterator[Record], problems: Problems) -> Iterator[tuple]:
    """Tuples `(row_id, prompt, response, history)`; counts the other rows in `problems`."""
    head = list(islice(found, _HEAD_ROWS))
    advice = say("Set prompt_column and response_column.")
    require_columns(path, _fields(head), (columns.prompt, columns.response), advice)
    for row_id, (number, fields) in enumerate(chain(head, found)):
        problems.num_rows += 1
        problems.has_history = problems.has_history or (isinstance(fields, dict) and columns.history in fields)
        row = fields if isinstance(fields, BadRow) else check_row(fields, columns)
        if isinstance(row, BadRow):
            problems.add(number, row)
        else:
            yield (row_id, *row)


def _fields(found: list[Record]) -> list[dict[str, Any]]:
    return [fields for _, fields in found if isinstance(fields, dict)]


def _write_arrow(path: Path, rows: Iterator[tuple], *, with_history: bool) -> int:
    """Writes the rows as an Arrow stream that `Dataset.from_file` maps; returns their number."""
    schema = _schema(with_history)
    num_written = 0
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        while batch := list(islice(rows, _BATCH_ROWS)):
            values = list(zip(*batch, strict=True))[: len(schema)]
            arrays = [pa.array(column, type=kind) for column, kind in zip(values, schema.types, strict=True)]
            writer.write_batch(pa.record_batch(arrays, schema=schema))
            num_written += len(batch)
    return num_written


def _schema(with_history: bool) -> pa.Schema:
    text = datasets.Value("string")
    features = datasets.Features({"row_id": datasets.Value("int64"), "prompt": text, "response": text})
    if with_history:
        features["history"] = datasets.List(datasets.List(text))
    return features.arrow_schema

"""What a run says of its rows: how long they are, what the limits cut, and which are trained and evaluated on."""

import logging
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from softlaunch.arguments import DataArguments
from softlaunch.messages import say

logger = logging.getLogger(__name__)

_SHARES = (0.5, 0.9, 0.99, 1.0)
_MAX_NAMED = 5  # rows named in a warning


@dataclass
class LengthReport:
    """Lengths in tokens of the rows of each file, before the limits cut them; and how many rows they cut."""

    _lines: list[tuple[str, str, list[int], list[int]]] = field(default_factory=list)

    def add(self, file: str, encoded: datasets.Dataset) -> None:
        """Takes the columns `num_source_tokens`, `num_target_tokens` and `num_cut_…` of an encoded file."""
        for part in ("source", "target"):
            if f"num_{part}_tokens" in encoded.column_names:
                lengths, cut = encoded[f"num_{part}_tokens"][:], encoded[f"num_cut_{part}_tokens"][:]
                self._lines.append((file, part, lengths, cut))

    def show(self, limits: DataArguments) -> None:
        """Prints the table, and warns of what was cut."""
        if not self._lines:
            return
        Console(stderr=True, highlight=False).print(self.table(limits))
        for file, part, lengths, cut in self._lines:
            if any(cut):
                logger.warning(
                    say(
                        "{file}: {cut:,} of {all:,} rows are longer than max_{part}_length and lost {tokens:,} tokens "
                        "of it in all; softlaunch show RUN.json --row N shows one",
                        file=file,
                        cut=sum(n > 0 for n in cut),
                        all=len(lengths),
                        part=part,
                        tokens=sum(cut),
                    )
                )

    def table(self, limits: DataArguments) -> Table:
        """A line for the prompts and one for the answers of each file."""
        table = Table(title=say("tokens per row, before cutting"), box=box.SIMPLE_HEAD, title_style="bold")
        table.add_column(say("file"), overflow="fold")
        table.add_column("")
        names = [say("rows"), say("median"), "90 %", "99 %", say("longest"), say("limit"), say("rows cut")]
        for name in names:
            table.add_column(name, justify="right")
        files = {file for file, *_ in self._lines}
        names_differ = len({Path(file).name for file in files}) == len(files)
        for file, part, lengths, cut in self._lines:
            ordered = sorted(lengths)
            numbers = [len(lengths), *(ordered[int(share * (len(ordered) - 1))] for share in _SHARES)]
            limit = limits.max_source_length if part == "source" else limits.max_target_length
            what = say("prompt") if part == "source" else say("answer")
            num_cut = sum(n > 0 for n in cut)
            cells = [f"{number:,}" for number in (*numbers, limit, num_cut)]
            shown = Text(Path(file).name if names_differ else file)
            table.add_row(shown, what, *cells, style="yellow" if num_cut else None)
        return table


def warn_of_shared_rows(train: datasets.Dataset, train_file: Any, held_out: datasets.Dataset, file: Any) -> None:
    """Warns of rows that are both trained on and held out: prompt, history and response are the same."""
    held: defaultdict[int, list[int]] = defaultdict(list)
    for row_id, key in _keys(held_out):
        held[key].append(row_id)
    keys = {key for _, key in _keys(train) if key in held}
    shared = sorted(row_id for key in keys for row_id in held[key])
    if shared:
        logger.warning(
            say(
                "{count:,} of {all:,} rows of {file} stand in {train_file} too (row_id {rows}): scores on rows that "
                "were trained on say little about new ones",
                count=len(shared),
                all=len(held_out),
                file=file,
                train_file=train_file,
                rows=", ".join(map(str, shared[:_MAX_NAMED])) + (", …" if len(shared) > _MAX_NAMED else ""),
            )
        )


def _keys(rows: datasets.Dataset) -> Iterator[tuple[int, int]]:
    """(row_id, hash of the whole row); a hash in place of the text keeps a large file out of memory."""
    names = [name for name in ("prompt", "history", "response") if name in rows.column_names]
    for batch in rows.iter(batch_size=1000):
        columns: Any = batch
        for row_id, *texts in zip(columns["row_id"], *(columns[name] for name in names), strict=True):
            yield row_id, hash(str(texts))

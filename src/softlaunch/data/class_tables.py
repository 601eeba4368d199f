"""Tables of a run's classes and lengths, as text for the log."""

from collections import Counter
from collections.abc import Mapping, Sequence
from io import StringIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from softlaunch.messages import say

_WIDTH = 100


def balance_table(names: Sequence[str], labels: Mapping[str, Sequence[int]]) -> str:
    """How many rows of each class every step has, and their share; `labels`: the classes' numbers, by step."""
    table = Table(title=say("rows of each class"))
    table.add_column(say("class"))
    for step in labels:
        table.add_column(step, justify="right")
        table.add_column("%", justify="right")
    counts = {step: Counter(of_step) for step, of_step in labels.items()}
    for number, name in enumerate(names):
        cells = []
        for step, of_step in labels.items():
            share = counts[step][number] / max(1, len(of_step))
            cells += [f"{counts[step][number]:,}", f"{100 * share:.1f}"]
        table.add_row(Text(name), *cells)
    return _as_text(table)


def length_table(lengths: Mapping[str, tuple[Sequence[int], int]]) -> str:
    """Of every step the rows, the percentiles of their tokens, and how many were cut."""
    table = Table(title=say("tokens of a row"))
    for name in ("", say("rows"), say("median"), "p95", say("longest"), say("cut")):
        table.add_column(name, justify="right" if name else "left")
    for step, (of_step, num_cut) in lengths.items():
        ordered = sorted(of_step)
        values = [ordered[int(share * (len(ordered) - 1))] for share in (0.5, 0.95, 1.0)]
        table.add_row(step, f"{len(ordered):,}", *map(str, values), f"{num_cut:,}")
    return _as_text(table)


def _as_text(table: Table) -> str:
    console = Console(file=StringIO(), width=_WIDTH)
    console.print(table)
    text = console.file
    assert isinstance(text, StringIO)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())

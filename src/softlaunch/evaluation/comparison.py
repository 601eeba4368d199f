"""Answers to look at: two sets side by side, and those that did worst and best."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.cells import cell_len, set_cell_size
from rich.table import Table
from rich.text import Text

from softlaunch.evaluation.text_metrics import SCORE_NAMES
from softlaunch.messages import say

_SHOWN_CELLS = 54  # of a terminal; a Chinese character takes two


def score_table(before: Mapping[str, Any], after: Mapping[str, Any]) -> Table:
    """The scores before and after, two results of `score_rows`."""
    table = Table(title=say("{rows:,} held-out rows", rows=after["rows"] + after["empty_references"]))
    for name in ("", *SCORE_NAMES):
        table.add_column(name, justify="right" if name else "left")
    for label, values in ((say("before"), before), (say("after"), after)):
        table.add_row(label, *(f"{values[name]:.2f}" if name in values else "–" for name in SCORE_NAMES))
    return table


def answer_table(
    title: str,
    prompts: Sequence[str],
    before: Sequence[Mapping[str, Any]],
    after: Sequence[Mapping[str, Any]],
    *,
    num_rows: int = 3,
    shorten: bool = False,
) -> Table:
    """The first `num_rows` answers before and after, which are records of `predict` in the order of the prompts.

    `shorten` keeps of every text what fits into a few lines. The reference is left out where no row has one.
    """
    shown = list(zip(prompts, before, after, strict=True))[:num_rows]
    has_reference = any(new["labels"] for _, _, new in shown)
    table = Table(title=title, show_lines=True)
    for name in (say("prompt"), say("before"), say("after"), *([say("reference")] if has_reference else [])):
        table.add_column(name, ratio=1, overflow="fold")
    for prompt, old, new in shown:
        cells = [prompt.strip(), old["predict"], new["predict"], *([new["labels"]] if has_reference else [])]
        table.add_row(*(Text(_shortened(cell) if shorten else cell) for cell in cells))
    return table


def extremes_table(rows: Sequence[Mapping[str, Any]], num_rows: int = 3) -> Table:
    """The `num_rows` worst and best of `rows`, which are lines of `rows_by_score.jsonl`."""
    worst = rows[: min(num_rows, len(rows) // 2)]
    best = rows[len(rows) - min(num_rows, len(rows) - len(worst)) :]
    table = Table(title=say("Worst and best of {rows:,} rows by ROUGE-L", rows=len(rows)))
    table.add_column("rouge-l", justify="right", no_wrap=True)
    table.add_column(say("row"), justify="right", no_wrap=True)
    for name in (say("prompt"), say("answer"), say("reference")):
        table.add_column(name, ratio=1, overflow="fold")
    for part in (worst, best):
        for row in part:
            texts = [Text(_shortened(row[name])) for name in ("prompt", "predict", "labels")]
            table.add_row(f"{row['rouge-l']:.1f}", str(row["row_id"]), *texts)
        table.add_section()
    return table


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if cell_len(line) <= _SHOWN_CELLS else set_cell_size(line, _SHOWN_CELLS - 1).rstrip() + "…"

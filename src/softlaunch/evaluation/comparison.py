"""Two sets of answers side by side, to look at."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table

from softlaunch.evaluation.text_metrics import SCORE_NAMES


def side_by_side(
    prompts: Sequence[str],
    before: Sequence[Mapping[str, Any]],
    after: Sequence[Mapping[str, Any]],
    scores: Sequence[Mapping[str, Any]],
    num_rows: int = 3,
) -> Group:
    """For rich's `Console.print`: the scores before and after, and the first `num_rows` answers before and after.

    `before` and `after` are the records of `predict` in the same order, `scores` their two results of `score_rows`.
    """
    table = Table(title=f"{len(after)} held-out rows")
    for name in ("", *SCORE_NAMES):
        table.add_column(name, justify="right" if name else "left")
    for label, values in zip(("before", "after"), scores, strict=True):
        table.add_row(label, *(f"{values[name]:.2f}" for name in SCORE_NAMES))
    answers = Table(title="answers", show_lines=True)
    for name in ("prompt", "before", "after", "reference"):
        answers.add_column(name, ratio=1, overflow="fold")
    for prompt, old, new in list(zip(prompts, before, after, strict=True))[:num_rows]:
        answers.add_row(prompt.strip(), old["predict"], new["predict"], new["labels"])
    return Group(table, answers)

"""Holding out validation rows, and texts that stand on both sides."""

from collections import Counter, defaultdict
from collections.abc import Sequence

import torch

from softlaunch.data.labelled import LabelledRow


def stratified_split(
    rows: Sequence[LabelledRow], share: float, seed: int
) -> tuple[list[LabelledRow], list[LabelledRow]]:
    """Training rows and validation rows, both in their former order.

    Of every class `share` of the rows is held out, at least one, but never the last one. Rows whose text occurs more
    than once stay in training, so that no text is on both sides.
    """
    texts = Counter((row.text, row.pair) for row in rows)
    by_class: defaultdict[str | None, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        by_class[row.label].append(index)
    generator = torch.Generator().manual_seed(seed)
    held_out: set[int] = set()
    for label in sorted(by_class, key=str):
        members = by_class[label]
        number = min(max(1, round(share * len(members))), len(members) - 1)
        once = [index for index in members if texts[rows[index].text, rows[index].pair] == 1]
        held_out |= {once[i] for i in torch.randperm(len(once), generator=generator)[:number].tolist()}
    kept = [row for index, row in enumerate(rows) if index not in held_out]
    return kept, [row for index, row in enumerate(rows) if index in held_out]


def shared_texts(
    training: Sequence[LabelledRow], other: Sequence[LabelledRow]
) -> list[tuple[LabelledRow, LabelledRow]]:
    """The rows of `other` whose text is in training too, each behind the first such training row."""
    first: dict[tuple[str, str | None], LabelledRow] = {}
    for row in training:
        first.setdefault((row.text, row.pair), row)
    return [(first[row.text, row.pair], row) for row in other if (row.text, row.pair) in first]

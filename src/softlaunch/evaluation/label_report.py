"""What a classification run leaves and prints of its predictions: scores, confusion matrix, mistakes."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from softlaunch.data.classification import Texts
from softlaunch.evaluation.confusion_picture import draw_confusion
from softlaunch.evaluation.label_metrics import confusion, label_scores, scores_per_class
from softlaunch.evaluation.run_summary import read_confusion
from softlaunch.messages import say
from softlaunch.run_directory import PREDICTIONS_FILE

_MAX_MISTAKES = 20
_FILE_WIDTH = 120  # where the output goes into a file or a pipe, whose width nobody knows
_TITLE_WIDTH = 48  # so that the title stays on one line


def report_classes(
    step: str, texts: Texts, logits: np.ndarray, names: Sequence[str], output_dir: Path
) -> dict[str, Any]:
    """Write and print what `logits` (rows, classes), in the order of `texts`, say about the rows of a step.

    Leaves `<step>_confusion.csv` and `<step>_mistakes.jsonl`; of `predict`, `predictions.jsonl` too. Returns the
    scores, `<step>_…`, with those of every class; none where the rows have no labels.
    """
    labels, probabilities = np.array(texts.encoded["labels"][:]), softmax(logits)
    records = list(predictions(texts, probabilities, labels, names))
    if step == "predict":
        _write_lines(output_dir / PREDICTIONS_FILE, records)
    labelled = labels >= 0
    if not labelled.any():
        return {}
    matrix = confusion(logits[labelled], labels[labelled], len(names))
    _write_matrix(output_dir / f"{step}_confusion.csv", matrix, names)
    scores = label_scores(logits[labelled], labels[labelled])
    per_class = scores_per_class(logits[labelled], labels[labelled], names)
    mistakes = confident_mistakes(texts, records)
    _write_lines(output_dir / f"{step}_mistakes.jsonl", mistakes)
    console = Console()
    if not console.is_terminal:
        console = Console(width=_FILE_WIDTH)
    console.print(_tables(step, scores, per_class, mistakes))
    return {
        **{f"{step}_{name}": value for name, value in scores.items()},
        f"{step}_num_labelled": int(labelled.sum()),
        f"{step}_per_class": per_class,
    }


def draw_classes(step: str, metrics: Mapping[str, Any], output_dir: Path) -> None:
    """Draw what `report_classes` has left, `<step>_confusion.png`; nothing where the rows had no labels."""
    if f"{step}_per_class" in metrics:
        found = read_confusion(output_dir / f"{step}_confusion.csv")
        assert found is not None  # just written
        scores = {name: metrics[f"{step}_{name}"] for name in ("accuracy", "f1_macro")}
        draw_confusion(
            np.array(found.counts), found.names, output_dir / f"{step}_confusion.png", title=_title(step, scores)
        )


def _title(step: str, scores: Mapping[str, float]) -> str:
    return f"{step}: accuracy {scores['accuracy']:.4f}, macro F1 {scores['f1_macro']:.4f}"


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities (rows, classes), float64."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def predictions(
    texts: Texts, probabilities: np.ndarray, labels: np.ndarray, names: Sequence[str]
) -> list[dict[str, Any]]:
    """Of every row: `row_id`, the class predicted (`predict`) and the true one (`labels`, null if unknown), and the
    probability of every class.
    """
    return [
        {
            "row_id": row.row_id,
            "predict": names[int(shares.argmax())],
            "labels": names[label] if label >= 0 else None,
            "probability": round(float(shares.max()), 6),
            "probabilities": {name: round(float(share), 6) for name, share in zip(names, shares, strict=True)},
        }
        for row, shares, label in zip(texts.rows, probabilities, labels, strict=True)
    ]


def confident_mistakes(texts: Texts, records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The 20 rows that were taken for a wrong class with the highest probability, with their place and text."""
    wrong = [
        {
            "place": texts.source.place(row),
            "labels": record["labels"],
            "predict": record["predict"],
            "probability": record["probability"],
            "text": row.text if row.pair is None else f"{row.text} ‖ {row.pair}",
        }
        for row, record in zip(texts.rows, records, strict=True)
        if record["labels"] is not None and record["predict"] != record["labels"]
    ]
    return sorted(wrong, key=lambda mistake: -mistake["probability"])[:_MAX_MISTAKES]


def _tables(
    step: str, scores: dict[str, float], per_class: dict[str, dict[str, float]], mistakes: list[dict[str, Any]]
) -> Group:
    classes = Table(title=_title(step, scores), min_width=_TITLE_WIDTH)
    for name in (say("class"), "precision", "recall", "f1", say("rows")):
        classes.add_column(name, justify="left" if name == say("class") else "right")
    for name, values in per_class.items():
        classes.add_row(
            escape(name), *(f"{values[key]:.4f}" for key in ("precision", "recall", "f1")), f"{values['support']:,}"
        )
    table = Table(title=say("the most confident mistakes"))
    for name in (say("where"), say("class"), say("taken for"), "p"):
        table.add_column(name, no_wrap=True)
    table.add_column(say("text"))  # the only column that gives way
    for mistake in mistakes:
        place, shown = Path(mistake["place"]).name, f"{mistake['probability']:.3f}"
        text = Text(mistake["text"].replace("\n", " "), no_wrap=True, overflow="ellipsis")
        table.add_row(*map(escape, (place, mistake["labels"], mistake["predict"])), shown, text)
    return Group(classes, *([table] if mistakes else []))


def _write_matrix(file: Path, matrix: np.ndarray, names: Sequence[str]) -> None:
    """Rows by true class, columns by predicted class, names on both."""
    with file.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(["", *names])
        writer.writerows([name, *row] for name, row in zip(names, matrix.tolist(), strict=True))


def _write_lines(file: Path, records: Sequence[dict[str, Any]]) -> None:
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    file.write_text("".join(lines), encoding="utf-8")

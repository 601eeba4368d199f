"""Scores of classes against values worked out by hand, and what is written of them."""

import csv
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from matplotlib import font_manager
from matplotlib.figure import Figure
from rich.console import Console

from softlaunch.arguments import DataArguments
from softlaunch.data.class_tables import balance_table
from softlaunch.data.classification import Texts
from softlaunch.data.label_sources import Source
from softlaunch.data.labelled import LabelledRow
from softlaunch.data.report import LengthReport
from softlaunch.evaluation import confusion_picture, label_report
from softlaunch.evaluation.label_metrics import confusion, label_scores, scores_per_class

# true: a a a b b c; predicted: a a b b b a
LABELS = np.array([0, 0, 0, 1, 1, 2])
LOGITS = np.eye(3)[[0, 0, 1, 1, 1, 0]]


def test_scores_by_hand():
    scores = label_scores(LOGITS, LABELS)
    assert scores["accuracy"] == pytest.approx(4 / 6)
    assert scores["precision_macro"] == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
    assert scores["recall_macro"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert scores["f1_macro"] == pytest.approx((2 / 3 + 0.8 + 0) / 3)
    assert scores["f1_weighted"] == pytest.approx((3 * 2 / 3 + 2 * 0.8 + 0) / 6)


def test_every_class_has_its_scores():
    scores = scores_per_class(LOGITS, LABELS, ["a", "b", "c"])
    assert scores["b"] == pytest.approx({"precision": 2 / 3, "recall": 1.0, "f1": 0.8, "support": 2})
    assert scores["c"]["f1"] == 0.0


def test_the_matrix_has_true_classes_in_lines_and_a_place_for_every_class():
    assert confusion(LOGITS, LABELS, 4).tolist() == [[2, 1, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]


NAMES = ["[/教育]", "[v2]", r"$\frac$"]  # markup of rich, and of matplotlib


@pytest.fixture
def texts():
    """One more mistake than is kept of class 0, and each of the others taken for the next."""
    labels = [0] * 21 + [1, 2, 2, -1]
    rows = [LabelledRow(i, i + 1, f"text {i}", None, None if n < 0 else NAMES[n]) for i, n in enumerate(labels)]
    encoded = datasets.Dataset.from_dict({"labels": labels})
    return Texts("eval", Source(Path("dev.tsv")), rows, encoded, num_cut=0)


def test_a_report_leaves_matrix_mistakes_and_scores_before_its_picture(texts, tmp_path, monkeypatch, capsys):
    """True classes stand in the lines of the matrix, predicted ones in its columns."""
    predicted = [1] * 21 + [2, 0, 2, 0]
    logits = np.eye(3)[predicted] * (1 + np.arange(25.0)[:, None] / 10)
    metrics = label_report.report_classes("eval", texts, logits, NAMES, tmp_path)
    with (tmp_path / "eval_confusion.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [
            ["", *NAMES],
            [NAMES[0], "0", "21", "0"],
            [NAMES[1], "0", "0", "1"],
            [NAMES[2], "1", "0", "1"],
        ]
    mistakes = [json.loads(line) for line in (tmp_path / "eval_mistakes.jsonl").read_text("utf-8").splitlines()]
    assert [mistake["place"] for mistake in mistakes] == [f"dev.tsv:row {i + 1}" for i in range(22, 2, -1)]
    assert mistakes[0]["probability"] > mistakes[-1]["probability"]
    assert (mistakes[0]["labels"], mistakes[0]["predict"], mistakes[0]["text"]) == (NAMES[2], NAMES[0], "text 22")
    out = capsys.readouterr().out
    assert all(name in out for name in NAMES)
    assert metrics["eval_num_labelled"] == 24
    assert not (tmp_path / "eval_confusion.png").exists()
    label_report.draw_classes("eval", metrics, tmp_path)
    assert (tmp_path / "eval_confusion.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(label_report, "draw_confusion", None)
    label_report.draw_classes("predict", {}, tmp_path)  # of rows without labels there is none


def test_names_are_shown_as_they_are(tmp_path):
    shown = balance_table(NAMES, {"train": [0, 1, 1, 2]})
    assert all(name in shown for name in NAMES)
    lengths = LengthReport()
    lengths.add("train[v2].json", datasets.Dataset.from_dict({"num_source_tokens": [3], "num_cut_source_tokens": [0]}))
    with (console := Console(width=200)).capture() as capture:
        console.print(lengths.table(DataArguments()))
    assert "train[v2].json" in capture.get()


def test_names_in_the_picture_are_written_in_a_font_that_has_them(monkeypatch):
    styles = {"Latin": "normal", "Slanted CJK": "italic", "Some CJK": "normal", "SimHei": "normal"}
    fonts = [font_manager.FontEntry(fname=name, name=name, style=style) for name, style in styles.items()]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", fonts)
    monkeypatch.setattr(confusion_picture, "_characters", lambda file: set(map(ord, "体育" if "CJK" in file else "")))
    assert confusion_picture.font_with("体育") == "Some CJK"
    monkeypatch.setattr(confusion_picture, "_characters", lambda file: set(map(ord, "" if "/" in file else "体育")))
    assert confusion_picture.font_with("体 育") == "SimHei", "one that is made for them comes first"
    axes = Figure().subplots()
    confusion_picture.draw_confusion_on(axes, np.array([[5, 1], [0, 2]]), ["体育", "天气"], "Some CJK")
    assert [label.get_text() for label in axes.get_yticklabels()] == ["体育", "天气"]
    assert {label.get_fontfamily()[0] for label in axes.get_xticklabels()} == {"Some CJK"}
    cells = {text.get_position(): text.get_text() for text in axes.texts}
    assert cells == {(0, 0): "5", (1, 0): "1", (1, 1): "2"}  # (predicted, true)


def test_without_a_font_classes_are_numbered_and_the_package_is_named(tmp_path, caplog, monkeypatch):
    dejavu = [font for font in font_manager.fontManager.ttflist if font.name.startswith("DejaVu")]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", dejavu)
    confusion_picture.draw_confusion(np.eye(2, dtype=int), ["体育", "天气"], tmp_path / "eval_confusion.png")
    assert (tmp_path / "eval_confusion.png").read_bytes().startswith(b"\x89PNG")
    assert "0 体育, 1 天气" in caplog.text
    assert confusion_picture.FONT_PACKAGE in caplog.text
    assert confusion_picture.font_with("体育") is None
    assert confusion_picture.font_with("sports") == font_manager.FontProperties().get_family()[0]

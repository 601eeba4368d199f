"""Scores of classes against values worked out by hand, and what is written of them."""

import numpy as np
import pytest
from matplotlib import font_manager

from softlaunch.evaluation import confusion_picture
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


def test_without_a_font_classes_are_numbered_and_the_package_is_named(tmp_path, caplog, monkeypatch):
    dejavu = [font for font in font_manager.fontManager.ttflist if font.name.startswith("DejaVu")]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", dejavu)
    confusion_picture.draw_confusion(np.eye(2, dtype=int), ["体育", "天气"], tmp_path / "eval_confusion.png")
    assert (tmp_path / "eval_confusion.png").read_bytes().startswith(b"\x89PNG")
    assert "0 体育, 1 天气" in caplog.text
    assert confusion_picture.FONT_PACKAGE in caplog.text
    assert confusion_picture.font_with("体育") is None
    assert confusion_picture.font_with("sports") == font_manager.FontProperties().get_family()[0]

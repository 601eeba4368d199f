"""Scores of predicted classes, by scikit-learn."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support


def label_scores(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracy, and precision, recall and F1, both their mean over the classes (macro) and weighted by class size.

    `logits` (rows, classes), `labels` (rows,). A class without any row counts with 0 in the macro mean only if it was
    predicted; one without a prediction has precision 0.
    """
    predicted = logits.argmax(-1)
    scores = {"accuracy": float(accuracy_score(labels, predicted))}
    for average in ("macro", "weighted"):
        values = precision_recall_fscore_support(labels, predicted, average=average, zero_division=0.0)
        scores |= {
            f"{name}_{average}": float(value)
            for name, value in zip(("precision", "recall", "f1"), values[:3], strict=True)
        }
    return scores


def scores_per_class(logits: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 and number of rows (`support`) of every class, by its name."""
    numbers = range(len(names))
    values: Any = precision_recall_fscore_support(labels, logits.argmax(-1), labels=list(numbers), zero_division=0.0)
    precision, recall, f1, support = values
    return {
        names[n]: {
            "precision": float(precision[n]),
            "recall": float(recall[n]),
            "f1": float(f1[n]),
            "support": int(support[n]),
        }
        for n in numbers
    }


def confusion(logits: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """int64 (classes, classes): rows of the class of the line that were taken for the class of the column."""
    return confusion_matrix(labels, logits.argmax(-1), labels=list(range(num_classes)))

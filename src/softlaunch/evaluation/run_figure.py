"""One picture of several runs: their loss curves, and the confusion matrices of classifiers."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure  # not pyplot, which keeps figures and chooses a window system

from softlaunch.evaluation.confusion_picture import FONT_PACKAGE, draw_confusion_on, font_with
from softlaunch.evaluation.run_summary import RunSummary

_CURVES_IN = 4.0  # height of the curves, inches
_CELL_IN = 0.36  # one class of a confusion matrix
_MARGIN_IN = 1.4  # around a matrix: its title and labels
_MATRICES_PER_ROW = 3
_NUM_COLOURS = 10  # of matplotlib's cycle
_DPI = 150


def draw_runs(runs: list[RunSummary], output: Path) -> bool:
    """Write the picture; the suffix says in which format.

    Returns False when classes bear numbers there because no font has the characters of their names. Raises OSError
    where the file cannot be written.
    """
    classifiers = [run for run in runs if run.confusion]
    num_columns = min(_MATRICES_PER_ROW, len(classifiers)) or 1
    num_rows = -(-len(classifiers) // num_columns)
    size = max((len(run.confusion.names) for run in classifiers if run.confusion), default=0)
    matrix_in = max(3.0, size * _CELL_IN) + _MARGIN_IN
    figure = Figure(
        figsize=(max(10.0, num_columns * matrix_in), _CURVES_IN + num_rows * matrix_in), layout="constrained"
    )
    heights = [_CURVES_IN, num_rows * matrix_in] if classifiers else [_CURVES_IN]
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    _draw_curves(parts[0], runs)
    named = _draw_matrices(parts[1], classifiers, num_rows, num_columns) if classifiers else True
    figure.savefig(output, dpi=_DPI, bbox_inches="tight")  # else long class names push the axis's own name out
    return named


def _draw_curves(figure: Any, runs: list[RunSummary]) -> None:
    axes = figure.subplots(1, 2)
    for ax, title, attribute in zip(
        axes, ("training loss", "validation loss"), ("train_curve", "validation_curve"), strict=True
    ):
        for number, run in enumerate(runs):
            curve = getattr(run, attribute)
            if curve:  # a curve of one point needs its mark
                style = {"color": f"C{number}", "linestyle": "-" if number < _NUM_COLOURS else "--", "linewidth": 1}
                ax.plot(*zip(*curve, strict=True), label=_plain(run.name), marker=".", **style)
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("step")
        ax.grid(alpha=0.3)
        if ax.lines:
            ax.legend(fontsize=8)
        else:
            ax.text(0.5, 0.5, "none logged", ha="center", va="center", transform=ax.transAxes)


def _draw_matrices(figure: Any, classifiers: list[RunSummary], num_rows: int, num_columns: int) -> bool:
    """One matrix per classifier; returns whether all of their classes could be named."""
    all_named = True
    axes = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    for ax, run in zip(axes, classifiers, strict=False):
        assert run.confusion is not None
        names, counts = run.confusion.names, np.array(run.confusion.counts)
        font = font_with("".join(names))
        all_named = all_named and font is not None
        draw_confusion_on(ax, counts, names, font, title=_plain(run.name))
    for ax in axes[len(classifiers) :]:
        ax.set_axis_off()
    if not all_named:
        note = "Classes by number, since no font here has the characters of their names: install the package "
        figure.supxlabel(note + FONT_PACKAGE, fontsize=8)
    return all_named


def _plain(name: str) -> str:
    """A run's name as text: matplotlib reads $…$ as a formula and leaves labels with a leading _ out."""
    return name.replace("$", r"\$").lstrip("_")

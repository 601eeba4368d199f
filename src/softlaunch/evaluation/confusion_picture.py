"""The confusion matrix as a picture; class numbers with a legend where no font has the characters of the names."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import font_manager, get_cachedir
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font

from softlaunch.messages import say

logger = logging.getLogger(__name__)

FONT_PACKAGE = "fonts-noto-cjk"  # Debian, Ubuntu; the family is called Noto Sans CJK elsewhere too
# Families to prefer among those that have the characters, as text in them looks as it should
_PREFERRED = ("Noto Sans CJK", "Source Han Sans", "WenQuanYi", "Microsoft YaHei", "PingFang", "SimHei")
# In the picture, so in English: there is no font for anything else
_NUMBERED = (
    "Classes are numbered in the order of {file}.\n"
    "For their names install a font that has them, as the package {package}."
)
_BOXES = "Last Resort High-Efficiency"  # comes with matplotlib and draws every character, as a box
_MAX_NUMBERED = 40  # with more classes the cells are too small to hold numbers


def draw_confusion(matrix: np.ndarray, names: Sequence[str], file: Path, *, title: str = "") -> None:
    """Write `matrix` (classes, classes), rows by true class, as a PNG; colours are shares of the row.

    Where no font has the characters of the names, classes are called by their numbers, and a line says how to get one.
    """
    size = max(4.5, 0.42 * len(names) + 2.2)
    figure = Figure(figsize=(size, size), layout="constrained")
    font = font_with("".join(names))
    draw_confusion_on(figure.subplots(), matrix, names, font, title=title)
    if font is None:
        note = _NUMBERED.format(file=file.with_suffix(".csv").name, package=FONT_PACKAGE)
        figure.supxlabel(note, fontsize=7)
        legend = ", ".join(f"{number} {name}" for number, name in enumerate(names))
        logger.warning(
            say(
                "{file}: no font has the characters of the classes, so they are numbered: {legend}. Install one, such "
                "as the package {package}, and delete matplotlib's cache ({cache})",
                file=file,
                legend=legend,
                package=FONT_PACKAGE,
                cache=get_cachedir(),
            )
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)


def draw_confusion_on(axes, matrix: np.ndarray, names: Sequence[str], font: str | None, *, title: str = "") -> None:  # type: ignore[no-untyped-def]
    """Draw it on one of matplotlib's axes; without a `font` the classes are called by their numbers."""
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    labels = list(names) if font else [str(number) for number in range(len(names))]
    style = {"parse_math": False, **({"fontfamily": font} if font else {})}  # a name may hold dollar signs
    axes.set_xticks(range(len(names)), labels, rotation=45 if font else 0, ha="right" if font else "center", **style)
    axes.set_yticks(range(len(names)), labels, **style)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.set_title(title)
    if len(names) <= _MAX_NUMBERED:
        for row, column in zip(*matrix.nonzero(), strict=True):
            colour = "white" if share[row, column] > 0.6 else "black"
            axes.text(column, row, str(matrix[row, column]), ha="center", va="center", fontsize=7, color=colour)


def font_with(text: str) -> str | None:
    """A font family that has all characters of `text`; matplotlib's own where it has them."""
    # Fonts that say "medium" where others say "normal" would be announced with every picture
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    wanted = {ord(character) for character in text if not character.isspace()}
    own = font_manager.FontProperties()
    if wanted <= _characters(font_manager.findfont(own)):
        return own.get_family()[0]
    fonts = [font for font in font_manager.fontManager.ttflist if font.style == "normal" and font.name != _BOXES]
    fonts.sort(key=lambda font: (not font.name.startswith(_PREFERRED), font.weight not in (400, "normal", "regular")))
    return next((font.name for font in fonts if wanted <= _characters(font.fname)), None)


def _characters(file: str) -> set[int]:
    try:
        return set(FT2Font(file).get_charmap())
    except (OSError, RuntimeError):  # a font that matplotlib lists and cannot read
        return set()

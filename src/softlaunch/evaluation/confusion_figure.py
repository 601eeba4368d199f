"""A confusion matrix as a picture, with the classes' names where a font has their characters."""

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

FONT_PACKAGE = "fonts-noto-cjk"  # of Debian and Ubuntu; one that has all Chinese characters
_MAX_CLASSES_WITH_COUNTS = 30
# Parts of the file names of fonts with Chinese characters, the likely ones first: reading all of a system's takes long
_LIKELY = ("notosanscjk", "sourcehansans", "wqy", "msyh", "simhei", "pingfang", "hiragino", "cjk", "song", "hei", "uni")


def font_for(names: Iterable[str]) -> Any | None:
    """Font properties for matplotlib that can write all of `names`, None when no installed font can."""
    characters = frozenset("".join(names))
    if all(ord(character) < 128 for character in characters):
        from matplotlib.font_manager import FontProperties

        return FontProperties()
    return _find_font(characters)


@cache
def _find_font(characters: frozenset[str]) -> Any | None:
    from matplotlib.font_manager import FontProperties, findSystemFonts, get_font

    def likelihood(path: str) -> int:
        name = Path(path).name.lower().replace("-", "")
        return next((rank for rank, part in enumerate(_LIKELY) if part in name), len(_LIKELY))

    # findSystemFonts looks anew: matplotlib's own list is a cache that does not know what was just installed
    for path in sorted(findSystemFonts(), key=lambda path: (likelihood(path), "bold" in path.lower(), path)):
        try:
            known = get_font(path).get_charmap()
        except (OSError, RuntimeError, ValueError):  # damaged, or of a kind that FreeType does not read
            continue
        if all(ord(character) in known for character in characters):
            return FontProperties(fname=path)
    return None


def draw_confusion(ax: Any, names: list[str], counts: list[list[int]], title: str, font: Any | None) -> None:
    """Draw on matplotlib axes: a row per true class, coloured by its share of the row, with the numbers of rows.

    `font` writes the names; None writes the classes' numbers, from 0, in place of their names.
    """
    shares = [[count / (sum(row) or 1) for count in row] for row in counts]
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    labels = names if font is not None else [str(number) for number in range(len(names))]
    style = {"fontproperties": font} if font is not None else {}
    upright = max(map(len, labels), default=0) <= 2
    ax.set_xticks(range(len(names)), labels, rotation=0 if upright else 90, **style)
    ax.set_yticks(range(len(names)), labels, **style)
    ax.set_xlabel("predicted")
    ax.set_ylabel("true")
    ax.set_title(title, fontsize=10)
    if len(names) > _MAX_CLASSES_WITH_COUNTS:
        return
    for i, row in enumerate(counts):
        for j, count in enumerate(row):
            if count:
                colour = "white" if shares[i][j] > 0.5 else "black"
                ax.text(j, i, str(count), ha="center", va="center", color=colour, fontsize=7)

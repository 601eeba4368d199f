"""Answers that say the same thing whatever is asked, and answers that say one thing over and over."""

import re
from collections import defaultdict
from collections.abc import Hashable, Sequence

# A piece of up to 100 characters, four times or more in a row, over 20 characters or more
_LOOP = re.compile(r"(.)\1{19,}|(..)\2{9,}|(...)\3{6,}|(.{4})\4{4,}|(.{5,100}?)\5{3,}", re.DOTALL)


def count_repetitions(prompts: Sequence[Hashable], predictions: Sequence[str]) -> dict[str, int]:
    """`repeated_predictions` and `looping_predictions`, two signs of a model that was trained too hard or too long.

    Repeated is an answer that is also given to another prompt, word for word; each of these rows counts. Looping is
    one in which a piece of up to 100 characters stands at least four times in a row and fills at least 20 characters.
    Empty answers are neither.
    """
    asked = defaultdict(set)
    for prompt, text in zip(prompts, predictions, strict=True):
        asked[text].add(prompt)
    texts = [text for text in predictions if text.strip()]
    return {
        "repeated_predictions": sum(len(asked[text]) > 1 for text in texts),
        "looping_predictions": sum(loops(text) for text in texts),
    }


def loops(text: str) -> bool:
    """Whether a piece of `text` is repeated as `count_repetitions` says."""
    return _LOOP.search(text) is not None

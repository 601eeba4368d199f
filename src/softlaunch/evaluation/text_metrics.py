"""Scores of generated Chinese text: the metric `adgen`, version 1.

Tools report ROUGE and BLEU under one name and several definitions, so the definition has a name and a version that
stand in every result file. `adgen` is what the ChatGLM-6B and ChatGLM2-6B P-Tuning scripts compute: per row the F of
ROUGE-1/2/L (Lin, 2004) over jieba's words by `rouge_chinese`, and sentence BLEU-4 (Papineni et al., 2002) over
characters by nltk with smoothing method 3; each × 100 and rounded to four digits, then the mean over the rows.
"""

import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

METRIC = "adgen"
METRIC_VERSION = 1
SCORE_NAMES = ("rouge-1", "rouge-2", "rouge-l", "bleu-4")


def score_row(prediction: str, reference: str) -> dict[str, float]:
    """The four scores of one answer, 0 to 100: `rouge-1`, `rouge-2`, `rouge-l`, `bleu-4`.

    All are 0 if either text is empty or only white space; rouge_chinese raises there ("Hypothesis is empty").
    Words, n-grams and sentences are rouge_chinese's: each n-gram counts once, and ROUGE-L takes one longest common
    subsequence over the whole text. Its table is words × words, so two texts of 1,000 words need about 0.1 GB.
    """
    if _is_empty(prediction) or _is_empty(reference):
        return dict.fromkeys(SCORE_NAMES, 0.0)
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
    from rouge_chinese import Rouge

    rouge = Rouge().get_scores(_spaced_words(prediction), _spaced_words(reference))[0]
    bleu = sentence_bleu([list(reference)], list(prediction), smoothing_function=SmoothingFunction().method3)
    fractions = {name: scores["f"] for name, scores in rouge.items()} | {"bleu-4": bleu}
    return {name: round(100 * float(fractions[name]), 4) for name in SCORE_NAMES}


def score_each(predictions: Sequence[str], references: Sequence[str]) -> list[dict[str, float] | None]:
    """`score_row` of every prediction; None where there is no reference to score it by.

    Raises:
        ValueError: the two are not of one length.
    """
    pairs = zip(predictions, references, strict=True)
    return [None if _is_empty(reference) else score_row(prediction, reference) for prediction, reference in pairs]


def score_rows(predictions: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
    """Mean scores of `predictions` against the `references` at the same places; see `mean_scores`."""
    return mean_scores(score_each(predictions, references), predictions)


def mean_scores(each: Sequence[Mapping[str, float] | None], predictions: Sequence[str]) -> dict[str, Any]:
    """The means of what `score_each` returned for these predictions, and what they were made from.

    Returns the means under the names of `score_row`, and `rows`, `empty_predictions` (each scored 0),
    `empty_references`, `metric`, `metric_version`. A row without a reference cannot be scored: it counts in
    `empty_references` and in nothing else. Where no row has a reference there are no means.
    """
    scored = [(scores, text) for scores, text in zip(each, predictions, strict=True) if scores is not None]
    means = {name: sum(s[name] for s, _ in scored) / len(scored) for name in SCORE_NAMES} if scored else {}
    return means | {
        "rows": len(scored),
        "empty_predictions": sum(_is_empty(text) for _, text in scored),
        "empty_references": len(each) - len(scored),
        "metric": METRIC,
        "metric_version": METRIC_VERSION,
    }


def _is_empty(text: str) -> bool:
    """Whether a text has no words: only white space is left of it."""
    return not text.strip()


def _spaced_words(text: str) -> str:
    return " ".join(_tokenizer().cut(text))


@lru_cache(maxsize=1)
def _tokenizer() -> Any:
    """A jieba tokenizer of our own: words that somebody adds to jieba's global one must not change the scores."""
    import jieba

    jieba.setLogLevel(logging.WARNING)  # it announces the loading of its dictionary on stderr
    return jieba.Tokenizer()

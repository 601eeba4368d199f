"""Scores of generated answers, while training too: what the best checkpoint can be chosen by."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import datasets
from accelerate.utils import gather_object
from transformers import PreTrainedTokenizerBase

from softlaunch.arguments import Arguments
from softlaunch.evaluation.predict import GenerationOptions, generate_answers, share_of_process
from softlaunch.evaluation.repetition import count_repetitions
from softlaunch.evaluation.text_metrics import SCORE_NAMES, score_rows

COUNT_NAMES = ("empty_predictions", "repeated_predictions", "looping_predictions")


def scorer(
    rows: datasets.Dataset | None, tokenizer: PreTrainedTokenizerBase, arguments: Arguments
) -> Callable[[Any], dict[str, float]] | None:
    """`answer_scores` as a function of the model alone, as the run asks for it; None without rows to answer."""
    if rows is None:
        return None
    share = share_of_process(arguments.training)
    return partial(answer_scores, tokenizer=tokenizer, rows=rows, options=GenerationOptions.of(arguments.data), **share)


def answer_scores(
    model: Any, tokenizer: PreTrainedTokenizerBase, rows: datasets.Dataset, options: GenerationOptions, **kwargs: Any
) -> dict[str, float]:
    """The means of `text_metrics.score_rows` over the answers of all processes; `kwargs` as in `generate_answers`."""
    mine = list(generate_answers(model, tokenizer, rows, options, **kwargs))
    records = sorted(gather_object(mine), key=lambda record: record["row_id"])
    scores = score_records(records) | repetitions(rows, records)
    return {name: scores[name] for name in (*SCORE_NAMES, *COUNT_NAMES) if name in scores}


def repetitions(rows: datasets.Dataset, records: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """`count_repetitions` of the answers to `rows`, both in the same order."""
    prompts = [tuple(ids) for ids in rows["input_ids"][:]]
    return count_repetitions(prompts, [record["predict"] for record in records])


def score_records(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`text_metrics.score_rows` of records as `predict` returns them."""
    return score_rows([record["predict"] for record in records], [record["labels"] for record in records])

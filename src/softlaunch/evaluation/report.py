"""The last step of a run: answers to the test rows, with and without the adapter, and their scores."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from softlaunch.arguments import Arguments
from softlaunch.evaluation.comparison import answer_table, extremes_table, score_table
from softlaunch.evaluation.predict import GenerationOptions, predict, share_of_process, write_original_format
from softlaunch.evaluation.scores import repetitions, score_records
from softlaunch.evaluation.text_metrics import mean_scores, score_each
from softlaunch.messages import say
from softlaunch.tuning import digest

ROWS_BY_SCORE_FILE = "rows_by_score.jsonl"


def predict_and_score(
    model: Any, tokenizer: PreTrainedTokenizerBase, rows: datasets.Dataset, arguments: Arguments
) -> dict[str, Any]:
    """Answer `rows`, write the answers into the run's directory and print some; returns their scores on process 0.

    All processes call it; the others get an empty dictionary. With `compare_with_base` the base answers too, without
    its adapter, into the folder `base/`.
    """
    output_dir, compares = Path(str(arguments.training.output_dir)), arguments.data.compare_with_base
    options = GenerationOptions.of(arguments.data)
    share: dict[str, Any] = {**share_of_process(arguments.training)}
    answers = partial(predict, model, tokenizer, rows, options, **share)
    after = answers(directory=output_dir, settings=options.settings(digest(model), rows))
    if compares:
        with model.disable_adapter():
            before = answers(directory=output_dir / "base", settings=options.settings(digest(model), rows))
    if arguments.training.process_index != 0:
        return {}
    write_original_format(after, output_dir / "generated_predictions.txt")
    prompts, predictions = rows["prompt"][:], [record["predict"] for record in after]
    each = score_each(predictions, [record["labels"] for record in after])
    scores = mean_scores(each, predictions) | repetitions(rows, after)
    by_score = rows_by_score(prompts, after, each)
    write_rows_by_score(by_score, output_dir / ROWS_BY_SCORE_FILE)
    console = Console()
    if by_score:
        console.print(extremes_table(by_score))
    if compares:
        console.print(score_table(score_records(before), scores), answer_table(say("answers"), prompts, before, after))
    return {f"predict_{name}": value for name, value in scores.items()}


def rows_by_score(
    prompts: Sequence[str], records: Sequence[Mapping[str, Any]], each: Sequence[Mapping[str, float] | None]
) -> list[dict[str, Any]]:
    """The rows that have a reference, the worst ROUGE-L first: `row_id`, the four scores, and the texts.

    `records` are those of `predict` in the order of the prompts, `each` their scores by `score_each`.
    """
    rows = [
        {
            "row_id": record["row_id"],
            **scores,
            "prompt": prompt,
            "predict": record["predict"],
            "labels": record["labels"],
        }
        for prompt, record, scores in zip(prompts, records, each, strict=True)
        if scores is not None
    ]
    return sorted(rows, key=lambda row: (row["rouge-l"], row["row_id"]))


def write_rows_by_score(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """One JSON object a line."""
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")

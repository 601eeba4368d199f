"""The last step of a run: answers to the test rows, with and without the adapter, and their scores."""

from functools import partial
from pathlib import Path
from typing import Any

import datasets
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from softlaunch.arguments import Arguments
from softlaunch.evaluation.comparison import side_by_side
from softlaunch.evaluation.predict import GenerationOptions, predict, share_of_process, write_original_format
from softlaunch.evaluation.scores import score_records
from softlaunch.tuning import digest


def predict_and_score(
    model: Any, tokenizer: PreTrainedTokenizerBase, rows: datasets.Dataset, arguments: Arguments
) -> dict[str, Any]:
    """Answer `rows`, write the answers into the run's directory and print them; returns their scores on process 0.

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
    scores = score_records(after)
    if compares:
        Console().print(side_by_side(rows["prompt"][:], before, after, [score_records(before), scores]))
    return {f"predict_{name}": value for name, value in scores.items()}

"""ROUGE-L on the demo's held-out rows: the base, P-Tuning v2 as in the demo, and full fine-tuning on the same rows.

    python benchmarks/demo_figures.py        # about 8 minutes on 2 cores

Full fine-tuning trains every weight of the base with the learning rate that did best for it, for as many epochs as the
demo trains its prefix.
"""

import argparse
import dataclasses
import tempfile
import time
from typing import Any

from rich.console import Console
from rich.table import Table
from transformers import PreTrainedTokenizerBase, set_seed

from softlaunch.arguments import Arguments, parse_arguments
from softlaunch.data.dataset import prompt_rows, training_rows
from softlaunch.evaluation.predict import GenerationOptions, generate_answers
from softlaunch.evaluation.scores import score_records
from softlaunch.models import load_model, load_tokenizer
from softlaunch.training.trainer import CausalTrainer
from softlaunch.tuning import add_prefix

RUN = "recipes/args/demo.json"


def scores(model: Any, tokenizer: PreTrainedTokenizerBase, arguments: Arguments) -> dict[str, Any]:
    rows = prompt_rows(arguments.data.test_file, arguments.data, tokenizer, arguments.data.max_predict_samples)
    options = GenerationOptions(arguments.data.val_max_target_length)
    batch_size = arguments.training.per_device_eval_batch_size
    records = generate_answers(model, tokenizer, rows, options, batch_size=batch_size)
    return score_records(sorted(records, key=lambda record: record["row_id"]))


def tune(model: Any, tokenizer: PreTrainedTokenizerBase, arguments: Arguments, learning_rate: float | None) -> float:
    """Seconds of training, without evaluation."""
    train = training_rows(arguments.data.train_file, arguments.data, tokenizer, arguments.data.max_train_samples)
    changes: dict[str, Any] = {"output_dir": tempfile.mkdtemp(), "eval_strategy": "no", "save_strategy": "no"}
    changes |= {"load_best_model_at_end": False, "restart": False}
    if learning_rate is not None:
        changes["learning_rate"] = learning_rate
    training = dataclasses.replace(arguments.training, **changes)
    trainer = CausalTrainer(model=model, args=training, train_dataset=train, pad_token_id=tokenizer.pad_token_id)
    start = time.monotonic()
    trainer.train()
    return time.monotonic() - start


def num_trained(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full_learning_rates", type=float, nargs="+", default=[3e-4])
    full_learning_rates = parser.parse_args().full_learning_rates

    arguments = parse_arguments([RUN])
    tuning, path = arguments.tuning, arguments.model.model_name_or_path
    tokenizer = load_tokenizer(path)
    table = Table(title="ROUGE-L on the demo's held-out rows")
    for name in ("", "rouge-l", "of full", "bleu-4", "trained parameters", "s"):
        table.add_column(name, justify="right" if name else "left")
    found = [("base", scores(load_model(path), tokenizer, arguments), 0, 0.0)]

    set_seed(arguments.training.seed)
    init_ids = tokenizer(tuning.prefix_init_text)["input_ids"] if tuning.prefix_init_text else None
    model: Any = add_prefix(
        load_model(path),
        num_virtual_tokens=tuning.pre_seq_len,
        initialisation=tuning.prefix_init,
        init_ids=init_ids,
        projection=tuning.prefix_projection,
        dropout=tuning.prefix_dropout,
    )
    seconds = tune(model, tokenizer, arguments, None)
    found.append(("P-Tuning v2", scores(model, tokenizer, arguments), num_trained(model), seconds))

    for learning_rate in full_learning_rates:
        set_seed(arguments.training.seed)
        model = load_model(path)
        seconds = tune(model, tokenizer, arguments, learning_rate)
        name = f"full fine-tuning, {learning_rate:g}"
        found.append((name, scores(model, tokenizer, arguments), num_trained(model), seconds))

    best = max(result["rouge-l"] for name, result, _, _ in found if name.startswith("full"))
    for name, result, parameters, seconds in found:
        cells = (f"{result['rouge-l']:.2f}", f"{result['rouge-l'] / best:.0%}", f"{result['bleu-4']:.2f}")
        table.add_row(name, *cells, f"{parameters:,}", f"{seconds:.0f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()

"""What a frozen encoder under a trained head costs: every row encoded once, against encoding it in every epoch.

    python benchmarks/frozen_features.py

Both train the same head from the same start on the same rows with the same trainer, the encoder without dropout. The
whole run (looking for a cache, encoding, writing the cache, training) is compared with one bare pass of the encoder
plus a bare loop over the head. Rows are generated: a quarter of the words are of a class, the others of none; weights
are random.
"""

import argparse
import copy
import tempfile
import time
from collections.abc import Callable
from typing import Any

import datasets
import torch
from rich.console import Console
from rich.table import Table
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer, set_seed

from softlaunch.arguments import TrainingArguments
from softlaunch.evaluation.label_metrics import label_scores
from softlaunch.training.classifier import ClassifierTrainer
from softlaunch.training.features import ClassCollator, encode_once
from softlaunch.tuning.classifier import ClassifierSettings
from softlaunch.tuning.head import HeadConfig, HeadModel

NUM_CLASSES, VOCABULARY, WORDS_OF_CLASS = 10, 8000, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--hidden_size", type=int, default=384)
    parser.add_argument("--num_layers", type=int, default=6)
    options = parser.parse_args()
    directory = tempfile.mkdtemp()
    datasets.config.HF_DATASETS_CACHE = directory  # nothing is taken from an earlier run
    train, test = rows(options.rows, seed=0), rows(options.rows // 4, seed=1)
    base, tokenizer = new_base(options.hidden_size, options.num_layers), new_tokenizer(directory)
    arguments = TrainingArguments(
        output_dir=directory,
        num_train_epochs=options.epochs,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=64,
        learning_rate=1e-3,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
    )

    def trainer(model: HeadModel, rows: Any) -> ClassifierTrainer:
        settings = ClassifierSettings("head", "base", 128, False, model.head)
        return ClassifierTrainer(
            model=model, args=arguments, train_dataset=rows, tokenizer=tokenizer, settings=settings, scores=label_scores
        )

    def once() -> float:
        model = new_head(base)
        encoded = encode_once(model, {"train": train, "test": test}, tokenizer, arguments)
        made = trainer(model, encoded["train"])
        made.train()
        return made.predict_rows(encoded["test"], "test")[1]["test_accuracy"]

    def every_epoch() -> float:
        model = new_head(base)
        made = trainer(model, train)
        encoder = model.get_base_model().base_model
        encoder.train = lambda mode=True: encoder  # type: ignore[method-assign]  # a frozen encoder drops nothing out
        encoder.eval()
        made.train()
        return made.predict_rows(test, "test")[1]["test_accuracy"]

    pass_s, features = timed(lambda: encoder_pass(base, [*train, *test], ClassCollator(tokenizer)))
    head_s, _ = timed(lambda: bare_head(base, features[: len(train)], train["labels"], options.epochs))
    results = {"every row once": timed(once), "in every epoch": timed(every_epoch)}
    table = Table(
        title=f"{len(train)} rows, {options.epochs} epochs, {options.num_layers} layers × {options.hidden_size}"
    )
    for name in ("", "seconds", "× (encoder pass + head)", "test accuracy"):
        table.add_column(name, justify="right" if name else "left")
    table.add_row("one pass of the encoder", f"{pass_s:.1f}", "", "")
    table.add_row("the head alone, bare loop", f"{head_s:.1f}", "", "")
    for name, (seconds, accuracy) in results.items():
        table.add_row(name, f"{seconds:.1f}", f"{seconds / (pass_s + head_s):.2f}", f"{accuracy:.4f}")
    Console().print(table)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.monotonic()
    result = work()
    return time.monotonic() - start, result


def rows(number: int, seed: int) -> datasets.Dataset:
    """Ids of 12 to 96 tokens; of a quarter of them, in random places, each is one of the four words of the class."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(12, 97, (number,), generator=generator).tolist()
    labels = torch.randint(0, NUM_CLASSES, (number,), generator=generator).tolist()
    ids = []
    for length, label in zip(lengths, labels, strict=True):
        words = torch.randint(1000, VOCABULARY, (length,), generator=generator)
        places = torch.randperm(length - 2, generator=generator)[: length // 4] + 1
        of_class = torch.randint(0, WORDS_OF_CLASS, (len(places),), generator=generator)
        words[places] = 100 + label * WORDS_OF_CLASS + of_class
        words[0], words[-1] = 2, 3
        ids.append(words.tolist())
    masks = [[1] * len(row) for row in ids]
    columns = {"input_ids": ids, "attention_mask": masks, "labels": labels, "row_id": list(range(number))}
    return datasets.Dataset.from_dict(columns)


def new_base(hidden_size: int, num_layers: int) -> BertForSequenceClassification:
    set_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=hidden_size // 64,
        intermediate_size=4 * hidden_size,
        num_labels=NUM_CLASSES,
    )
    model = BertForSequenceClassification(config).eval()
    for name, parameter in model.bert.named_parameters():  # large enough that the first token sees the others
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.5 if "embeddings" in name else 1.4 / hidden_size**0.5)
    return model


def new_tokenizer(directory: str) -> BertTokenizer:
    """It pads and nothing else."""
    with open(f"{directory}/vocab.txt", "w") as file:  # noqa: PTH123
        file.write("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n")
    return BertTokenizer(f"{directory}/vocab.txt")


def new_head(base: BertForSequenceClassification) -> HeadModel:
    set_seed(1)
    return HeadModel(copy.deepcopy(base), HeadConfig(modules_to_save=["classifier", "bert.pooler"]))


@torch.no_grad()
def encoder_pass(base: BertForSequenceClassification, rows: list[dict], collate: ClassCollator) -> torch.Tensor:
    order = sorted(range(len(rows)), key=lambda row: -len(rows[row]["input_ids"]))
    features = torch.zeros(len(rows), base.config.hidden_size)
    for start in range(0, len(order), 64):
        batch = order[start : start + 64]
        inputs = collate([rows[row] for row in batch])
        hidden = base.bert(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
        features[batch] = hidden[:, 0]
    return features


def bare_head(base: BertForSequenceClassification, features: torch.Tensor, labels: list[int], epochs: int) -> None:
    pooler, classifier = copy.deepcopy(base.bert.pooler), copy.deepcopy(base.classifier)
    optimizer = torch.optim.AdamW([*pooler.parameters(), *classifier.parameters()], lr=1e-3)
    targets = torch.tensor(labels[:])
    for _ in range(epochs):
        for batch in torch.randperm(len(features)).split(16):
            logits = classifier(pooler(features[batch, None]))
            torch.nn.functional.cross_entropy(logits, targets[batch]).backward()
            optimizer.step()
            optimizer.zero_grad()


if __name__ == "__main__":
    main()

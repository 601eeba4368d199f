"""The rows of a classification run: read, checked, split, encoded and counted."""

import logging
import random
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
from transformers import PreTrainedTokenizerBase

from softlaunch.arguments import Arguments, ClassificationArguments
from softlaunch.data.check import Problems, log_dropped
from softlaunch.data.class_tables import balance_table, length_table
from softlaunch.data.classes import Classes, check_class_file, check_number, classes_of_labels, read_class_file, shorten
from softlaunch.data.label_sources import Source, find_sources
from softlaunch.data.labelled import LabelColumns, LabelledRow, read_labelled
from softlaunch.data.sources import TABLES, BadRow
from softlaunch.data.split import shared_texts, stratified_split
from softlaunch.data.text_encoding import codec_name
from softlaunch.messages import say

logger = logging.getLogger(__name__)

_MANY_ROWS = 20  # from which on classes of one row each are no accident
_MAX_SHOWN = 5  # texts named that stand in training and in validation


@dataclass(frozen=True)
class Texts:
    """The rows of one step of a run: train, validation or test.

    `encoded`: `input_ids`, `attention_mask` (`token_type_ids` where the tokenizer makes them), `labels` (the number of
    the class, -1 for none) and `row_id`, in the order of `rows`. `num_cut`: how many of them lost tokens.
    """

    step: str
    source: Source
    rows: list[LabelledRow]
    encoded: datasets.Dataset
    num_cut: int

    @property
    def lengths(self) -> list[int]:
        """Tokens of every row."""
        return [len(ids) for ids in self.encoded["input_ids"]]


@dataclass(frozen=True)
class ClassRows:
    """All rows of a run, None for a step that it does not take, and their classes."""

    classes: Classes
    train: Texts | None
    validation: Texts | None
    test: Texts | None

    @property
    def steps(self) -> dict[str, Texts]:
        """The rows that there are, by step."""
        found = {"train": self.train, "validation": self.validation, "test": self.test}
        return {step: texts for step, texts in found.items() if texts is not None}


def load_class_rows(
    arguments: Arguments, tokenizer: PreTrainedTokenizerBase, trained: Sequence[str] | None = None
) -> ClassRows:
    """The rows for every step that the run takes; tables of classes and lengths go to the log.

    `trained`: the classes of a model that is only evaluated. Otherwise they are those of `class_file`, of the features
    of a saved dataset, or those that occur in training. Raises DataError for what cannot be used.
    """
    training, found = arguments.training, _read_all(arguments)
    train = found.get("train")
    if trained is not None:
        classes = Classes(tuple(trained), numbered=True)
        check_number(classes, arguments.classification.num_labels, str(arguments.tuning.adapter or training.output_dir))
    else:
        assert train is not None  # the arguments were checked for it
        classes = _classes(arguments, train)
    rows = {step: _known_rows(read, classes, arguments.data.skip_bad_rows) for step, read in found.items()}
    if train is not None and training.do_eval and "validation" not in found:
        share = arguments.classification.validation_share
        rows["train"], rows["validation"] = stratified_split(rows["train"], share, training.seed)
        values = {"path": train.source, "number": len(rows["validation"]), "share": share}
        logger.info(say("{path}: {number:,} rows ({share:.0%} of every class) are held out for validation", **values))
        found["validation"] = train
    _warn_of_unseen(rows, found, classes, trained is not None)
    _warn_of_shared(rows, found)
    limits = {
        "train": arguments.data.max_train_samples,
        "validation": arguments.data.max_eval_samples,
        "test": arguments.data.max_predict_samples,
    }
    texts = {
        step: _encode(
            step, found[step].source, _sample(of_step, limits[step], training.seed), classes, tokenizer, arguments
        )
        for step, of_step in sorted(rows.items(), key=lambda item: list(limits).index(item[0]))
        if step != "train" or training.do_train
    }
    labels = {step: of_step.encoded["labels"][:] for step, of_step in texts.items()}
    logger.info(balance_table(classes.names, labels))
    logger.info(length_table({step: (of_step.lengths, of_step.num_cut) for step, of_step in texts.items()}))
    return ClassRows(classes, texts.get("train"), texts.get("validation"), texts.get("test"))


@dataclass(frozen=True)
class _Read:
    """What stands in one file."""

    source: Source
    rows: list[LabelledRow]
    problems: Problems


def _read_all(arguments: Arguments) -> dict[str, _Read]:
    """The rows of every step that has a source of its own; training rows also where validation is cut from them."""
    codec, found = codec_name(arguments.data.file_encoding), {}
    for step, source in find_sources(arguments).items():
        columns = columns_of(arguments.classification, require_label=step != "test")
        found[step] = _Read(source, *read_labelled(source.path, columns, codec, source.split))
    return found


def columns_of(options: ClassificationArguments, *, require_label: bool) -> LabelColumns:
    """The columns that the options name."""
    pair = options.text_pair_column
    return LabelColumns(
        str(options.text_column), str(options.label_column), None if pair is None else str(pair), require_label
    )


def _classes(arguments: Arguments, train: _Read) -> Classes:
    options = arguments.classification
    if not train.rows:
        raise train.problems.error(train.source.path)
    labels = {row.label for row in train.rows if row.label is not None}
    names = train.source.class_names(str(options.label_column))
    if options.class_file:
        classes = read_class_file(options.class_file, codec_name(arguments.data.file_encoding))
        check_class_file(options.class_file, classes, labels, train.source.path)
    elif names:
        classes = Classes(tuple(names), numbered=True)
    else:
        classes = classes_of_labels(labels)
    check_number(classes, options.num_labels, options.class_file or train.source.path)
    _warn_of_columns(train, options, labels)
    return classes


def _warn_of_columns(train: _Read, options: ClassificationArguments, labels: Collection[str]) -> None:
    """Warn of columns that look like others: texts taken for classes, a header taken for a row."""
    rows, path = train.rows, train.source
    if len(rows) >= _MANY_ROWS and len(labels) > len(rows) / 2:
        logger.warning(
            say(
                "{path}: {classes:,} classes in {rows:,} rows: are text_column {text} and label_column {label} "
                "swapped?",
                path=path,
                classes=len(labels),
                rows=len(rows),
                text=options.text_column,
                label=options.label_column,
            )
        )
        return
    counts = Counter(row.label for row in rows)
    alone = [label for label, count in counts.items() if count == 1]
    if (
        rows[0].number == 1 and alone == [rows[0].label] and path.path.suffix.lower() in TABLES
    ):  # a header may be the first line
        logger.warning(
            say(
                "{place}: the first line is taken for a row, and no other is of its class {name}. If it is a header, "
                "set text_column and label_column to its names",
                place=path.place(rows[0]),
                name=rows[0].label,
            )
        )


def _known_rows(read: _Read, classes: Classes, skip_bad_rows: bool) -> list[LabelledRow]:
    """The rows without a fault and with a known class; raises DataError for the others unless they are skipped."""
    good = []
    for row in read.rows:
        index = None if row.label is None else classes.index(row.label)
        if isinstance(index, BadRow):
            read.problems.add(row.number, index)
        else:
            good.append(row)
    counts = read.problems.counts
    if counts and not (skip_bad_rows and good):
        raise read.problems.error(read.source.path)
    log_dropped(read.source.path, read.problems.num_rows, counts.items())
    return good


def _warn_of_unseen(
    rows: dict[str, list[LabelledRow]], found: dict[str, _Read], classes: Classes, only_evaluates: bool
) -> None:
    """Name the classes of a class file that no training row has; validation rows of them cannot be got right."""
    if only_evaluates:
        return
    trained = {classes.index(row.label) for row in rows["train"] if row.label is not None}
    unseen = [name for number, name in enumerate(classes.names) if number not in trained]
    if unseen:
        values = {"path": found["train"].source, "names": shorten(unseen)}
        logger.warning(say("{path}: no training row is of the class {names}: it will not be learnt", **values))


def _warn_of_shared(rows: dict[str, list[LabelledRow]], found: dict[str, _Read]) -> None:
    """Name texts of validation and test that are in training too: they make the scores too good."""
    for step in ("validation", "test"):
        pairs = shared_texts(rows.get("train", []), rows.get(step, []))
        if not pairs:
            continue
        shown = [
            f"  {found[step].source.place(row)} = {found['train'].source.place(seen)}: {row.text[:40]}"
            for seen, row in pairs[:_MAX_SHOWN]
        ]
        text = say(
            "{path}: {number:,} of {all:,} texts are among the training texts too, which makes the scores too good:",
            path=found[step].source,
            number=len(pairs),
            all=len(rows[step]),
        )
        logger.warning("\n".join([text, *shown]))


def _sample(rows: list[LabelledRow], limit: int | None, seed: int) -> list[LabelledRow]:
    """At most `limit` rows, drawn at random: files of classes are often sorted by class."""
    if limit is None or limit >= len(rows):
        return rows
    chosen = sorted(random.Random(seed).sample(range(len(rows)), limit))
    return [rows[index] for index in chosen]


def _encode(
    step: str,
    source: Source,
    rows: list[LabelledRow],
    classes: Classes,
    tokenizer: PreTrainedTokenizerBase,
    arguments: Arguments,
) -> Texts:
    encoded: Any = encode_texts(
        tokenizer, [row.text for row in rows], [row.pair for row in rows], arguments.data.max_source_length
    )
    columns = {name: encoded[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in encoded}
    columns["labels"] = [-1 if row.label is None else classes.index(row.label) for row in rows]
    columns["row_id"] = [row.row_id for row in rows]
    num_cut = sum(bool(one.overflowing) for one in encoded.encodings)
    return Texts(step, source, rows, datasets.Dataset.from_dict(columns), num_cut)


def encode_texts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], pairs: Collection[str | None], max_length: int
) -> Any:
    """Token ids of texts, or of pairs of texts, each cut to `max_length` tokens, the longer text of a pair first."""
    second = list(pairs) if any(pair is not None for pair in pairs) else None
    return tokenizer(list(texts), second, truncation=True, max_length=max_length)

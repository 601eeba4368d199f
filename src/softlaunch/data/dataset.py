"""Data files to encoded rows: reading, encoding and a report of lengths, as the arguments ask for."""

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import datasets
from transformers import PreTrainedTokenizerBase

from softlaunch.arguments import Arguments, DataArguments
from softlaunch.data.encode import EncodeOptions, encode_for_generation, encode_for_training
from softlaunch.data.read import read_rows
from softlaunch.data.report import LengthReport, warn_of_shared_rows

logger = logging.getLogger(__name__)


class Rows(NamedTuple):
    """The encoded rows of a run; None for what it does not need. `validation_prompts` are `validation` to answer."""

    train: datasets.Dataset | None
    validation: datasets.Dataset | None
    validation_prompts: datasets.Dataset | None
    test: datasets.Dataset | None


def load_rows(arguments: Arguments, tokenizer: PreTrainedTokenizerBase) -> Rows:
    """The rows for every step of the run that its arguments ask for, each file read and checked once.

    The first process prints how long the rows are and what the limits cut, and warns of rows to evaluate on that are
    trained on too. Raises DataError for rows that cannot be used.
    """
    data, training = arguments.data, arguments.training
    speaks = training.process_index == 0
    train = validation = validation_prompts = test = None
    lengths = LengthReport()
    if training.do_train:
        train_rows = checked_rows(data.train_file, data, data.max_train_samples)
        train = _encode(train_rows, data, tokenizer, encode_for_training, lengths, data.train_file)
    if training.do_eval:
        rows = checked_rows(data.validation_file, data, data.max_eval_samples)
        validation = _encode(rows, data, tokenizer, encode_for_training, lengths, data.validation_file)
        if training.predict_with_generate:
            validation_prompts = _encode(rows, data, tokenizer, encode_for_generation)
        if training.do_train and speaks:
            warn_of_shared_rows(train_rows, data.train_file, rows, data.validation_file)
    if training.do_predict:
        rows = checked_rows(data.test_file, data, data.max_predict_samples, require_response=False)
        test = _encode(rows, data, tokenizer, encode_for_generation, lengths, data.test_file)
        if training.do_train and speaks:
            warn_of_shared_rows(train_rows, data.train_file, rows, data.test_file)
    if speaks:
        lengths.show(data)
    return Rows(
        _without(train, "prompt", "reference"), _without(validation, "prompt", "reference"), validation_prompts, test
    )


def training_rows(
    file: str | None, arguments: DataArguments, tokenizer: PreTrainedTokenizerBase, max_rows: int | None = None
) -> datasets.Dataset:
    """`input_ids`, `labels` and `row_id` of every row of `file`, for training and for `eval_loss`."""
    rows = _encode(checked_rows(file, arguments, max_rows), arguments, tokenizer, encode_for_training)
    return rows.remove_columns("prompt")


def prompt_rows(
    file: str | None, arguments: DataArguments, tokenizer: PreTrainedTokenizerBase, max_rows: int | None = None
) -> datasets.Dataset:
    """`input_ids` (of the prompt), `prompt`, `reference` and `row_id` of every row of `file`, to generate answers."""
    rows = checked_rows(file, arguments, max_rows, require_response=False)
    return _encode(rows, arguments, tokenizer, encode_for_generation)


def checked_rows(
    file: str | None, arguments: DataArguments, max_rows: int | None = None, *, require_response: bool = True
) -> datasets.Dataset:
    """`read_rows` of a file as the arguments ask for it."""
    assert file is not None  # the arguments were checked for it
    return read_rows(
        file,
        prompt_column=arguments.prompt_column,
        response_column=arguments.response_column,
        history_column=arguments.history_column,
        file_encoding=arguments.file_encoding,
        skip_bad_rows=arguments.skip_bad_rows,
        max_rows=max_rows,
        require_response=require_response,
        num_workers=arguments.preprocessing_num_workers,
    )


def encode_options(arguments: DataArguments) -> EncodeOptions:
    """How the arguments ask for rows to be encoded."""
    return EncodeOptions(
        max_source_length=arguments.max_source_length,
        max_target_length=arguments.max_target_length,
        source_prefix=arguments.source_prefix,
        train_on_all_turns=arguments.train_on_all_turns,
        legacy_truncation=arguments.legacy_truncation,
    )


def _encode(
    rows: datasets.Dataset,
    arguments: DataArguments,
    tokenizer: PreTrainedTokenizerBase,
    encode: Callable,
    lengths: LengthReport | None = None,
    file: str | None = None,
) -> datasets.Dataset:
    encoded = rows.map(
        encode,
        batched=True,
        fn_kwargs={"tokenizer": tokenizer, "options": encode_options(arguments)},
        remove_columns=["response", *(["history"] if arguments.history_column else [])],
        num_proc=arguments.preprocessing_num_workers,
        load_from_cache_file=not arguments.overwrite_cache,
    )
    measures = [name for name in encoded.column_names if name.startswith("num_")]
    if lengths is not None:
        lengths.add(str(file), encoded)
    return encoded.remove_columns(measures)


def _without(rows: datasets.Dataset | None, *columns: str) -> Any:
    return rows and rows.remove_columns([name for name in columns if name in rows.column_names])

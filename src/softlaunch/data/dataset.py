"""A data file to encoded rows: reading, encoding and a report of lengths, as the arguments ask for."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import datasets
from transformers import PreTrainedTokenizerBase

from softlaunch.arguments import Arguments, DataArguments
from softlaunch.data.encode import EncodeOptions, encode_for_generation, encode_for_training
from softlaunch.data.read import read_rows

logger = logging.getLogger(__name__)


class Rows(NamedTuple):
    """The encoded rows of a run; None for what it does not need. `validation_prompts` are `validation` to answer."""

    train: datasets.Dataset | None
    validation: datasets.Dataset | None
    validation_prompts: datasets.Dataset | None
    test: datasets.Dataset | None


def load_rows(arguments: Arguments, tokenizer: PreTrainedTokenizerBase) -> Rows:
    """The rows for every step of the run that its arguments ask for. Raises DataError for rows that cannot be used."""
    data, training = arguments.data, arguments.training
    train = validation = validation_prompts = test = None
    if training.do_train:
        train = training_rows(data.train_file, data, tokenizer, data.max_train_samples)
    if training.do_eval:
        validation = training_rows(data.validation_file, data, tokenizer, data.max_eval_samples)
    if training.do_eval and training.predict_with_generate:
        validation_prompts = prompt_rows(data.validation_file, data, tokenizer, data.max_eval_samples)
    if training.do_predict:
        test = prompt_rows(data.test_file, data, tokenizer, data.max_predict_samples)
    return Rows(train, validation, validation_prompts, test)


def training_rows(
    file: str | None, arguments: DataArguments, tokenizer: PreTrainedTokenizerBase, max_rows: int | None = None
) -> datasets.Dataset:
    """`input_ids`, `labels` and `row_id` of every row of `file`, for training and for `eval_loss`."""
    rows = _encoded(file, arguments, tokenizer, max_rows, encode_for_training, require_response=True)
    return rows.remove_columns("prompt")


def prompt_rows(
    file: str | None, arguments: DataArguments, tokenizer: PreTrainedTokenizerBase, max_rows: int | None = None
) -> datasets.Dataset:
    """`input_ids` (of the prompt), `prompt`, `reference` and `row_id` of every row of `file`, to generate answers."""
    return _encoded(file, arguments, tokenizer, max_rows, encode_for_generation, require_response=False)


def _encoded(
    file: str | None,
    arguments: DataArguments,
    tokenizer: PreTrainedTokenizerBase,
    max_rows: int | None,
    encode: Callable,
    *,
    require_response: bool,
) -> datasets.Dataset:
    assert file is not None  # the arguments were checked for it
    rows = read_rows(
        file,
        prompt_column=arguments.prompt_column,
        response_column=arguments.response_column,
        history_column=arguments.history_column,
        file_encoding=arguments.file_encoding,
        skip_bad_rows=arguments.skip_bad_rows,
        max_rows=max_rows,
        require_response=require_response,
    )
    encoded = rows.map(
        encode,
        batched=True,
        fn_kwargs={"tokenizer": tokenizer, "options": EncodeOptions.of(arguments)},
        remove_columns=["response", *(["history"] if arguments.history_column else [])],
        num_proc=arguments.preprocessing_num_workers,
        load_from_cache_file=not arguments.overwrite_cache,
    )
    cut = [name for name in encoded.column_names if name.startswith("num_cut_")]
    _report(file, encoded, cut)
    return encoded.remove_columns(cut)


def _report(file: str, encoded: datasets.Dataset, cut: Sequence[str]) -> None:
    lengths = sorted(len(ids) for ids in encoded["input_ids"])
    median, p95 = (lengths[int(share * (len(lengths) - 1))] for share in (0.5, 0.95))
    logger.info("%s: %d rows, tokens median %d, p95 %d, max %d", file, len(lengths), median, p95, lengths[-1])
    for name in cut:
        tokens: list[Any] = [n for n in encoded[name] if n]
        if tokens:
            limit = name.removeprefix("num_cut_").removesuffix("_tokens")
            logger.warning(
                "%s: %d of %d rows are longer than max_%s_length and lost %d tokens of it in all",
                *(file, len(tokens), len(lengths), limit, sum(tokens)),
            )

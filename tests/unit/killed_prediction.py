"""A prediction run to be killed: `python -m tests.unit.killed_prediction TOKENIZER DIRECTORY`."""

import sys
from pathlib import Path

import datasets
import torch
from transformers import PreTrainedTokenizerBase

from softlaunch.evaluation.predict import GenerationOptions, predict
from softlaunch.models import load_tokenizer
from softlaunch.tuning import PrefixModel, add_prefix, digest
from tests.bases import _SHAPE, random_base

OPTIONS = GenerationOptions(max_new_tokens=24)
NUM_ROWS = 60


def model_for(tokenizer: PreTrainedTokenizerBase) -> PrefixModel:
    """The same in every process."""
    _SHAPE["vocab_size"] = len(tokenizer)
    torch.manual_seed(0)
    return add_prefix(random_base("glm"), num_virtual_tokens=4)


def many_rows(tokenizer: PreTrainedTokenizerBase) -> datasets.Dataset:
    texts = [f"{text} {number}" for number in range(NUM_ROWS // 3) for text in ("你好", "推荐 上衣", "今天天气怎么样")]
    ids = [tokenizer(text)["input_ids"] for text in texts]
    return datasets.Dataset.from_dict({"input_ids": ids, "reference": texts, "row_id": list(range(NUM_ROWS))})


def run(model: PrefixModel, tokenizer: PreTrainedTokenizerBase, directory: Path) -> list[dict]:
    rows = many_rows(tokenizer)
    settings = OPTIONS.settings(digest(model), rows)
    return predict(model, tokenizer, rows, OPTIONS, directory=directory, settings=settings, batch_size=2)


if __name__ == "__main__":
    tokenizer = load_tokenizer(sys.argv[1])
    run(model_for(tokenizer), tokenizer, Path(sys.argv[2]))

"""A few prompts that are answered before training and after it: what the training has done, for the eye."""

import json
import logging
from pathlib import Path
from typing import Any

import datasets
from accelerate.utils import gather_object
from rich.console import Console
from transformers import PreTrainedTokenizerBase, TrainerCallback

from softlaunch.arguments import Arguments
from softlaunch.data.dataset import Rows, encode_options
from softlaunch.data.encode import IGNORED_LABEL, encode_for_generation
from softlaunch.evaluation.comparison import answer_table
from softlaunch.evaluation.predict import GenerationOptions, generate_answers, share_of_process
from softlaunch.files import write_text
from softlaunch.messages import say

logger = logging.getLogger(__name__)

PROBES_FILE = "probes.jsonl"
_NUM_ROWS = 3
_MAX_NEW_TOKENS = 64


class Probes(TrainerCallback):
    """Answers the prompts before the first step and behind the last one, writes `probes.jsonl` and prints both.

    Each line of the file is one answer: `step`, `row_id`, `prompt`, `predict`, `labels` (the reference). Answers are
    greedy and at most 64 tokens long, so that they take seconds and no random number: training is the same without
    them. A run that goes on from a checkpoint finds the first answers in the file.
    """

    def __init__(self, rows: Rows, tokenizer: PreTrainedTokenizerBase, arguments: Arguments):
        self.rows = probe_rows(rows, tokenizer, arguments) if arguments.training.do_train else None
        self.tokenizer = tokenizer
        self.file = Path(str(arguments.training.output_dir)) / PROBES_FILE
        self.options = GenerationOptions(min(GenerationOptions.of(arguments.data).max_new_tokens, _MAX_NEW_TOKENS))
        self.share = share_of_process(arguments.training)

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if self.rows is not None and state.global_step == 0:
            self._write(self._answers(model, step=0))

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if self.rows is None:
            return
        best = state.best_global_step if args.load_best_model_at_end else None
        after = self._answers(model, step=best or state.global_step)
        if not state.is_world_process_zero:
            return
        before = [record for record in self._read() if record["step"] == 0]
        self._write(before + after)
        if [record["prompt"] for record in before] == [record["prompt"] for record in after]:
            title = say("Before training and after {steps:,} steps", steps=after[0]["step"])
            prompts = self.rows["prompt"][:]
            Console().print(answer_table(title, prompts, before, after, num_rows=len(after), shorten=True))

    def _answers(self, model: Any, step: int) -> list[dict[str, Any]]:
        """The records of all processes in the order of the prompts; all processes call it."""
        assert self.rows is not None
        mine = list(generate_answers(model, self.tokenizer, self.rows, self.options, **self.share))
        records = sorted(gather_object(mine), key=lambda record: record["row_id"])
        pairs = zip(records, self.rows["prompt"][:], strict=True)
        return [
            {"step": step, "row_id": r["row_id"], "prompt": prompt, "predict": r["predict"], "labels": r["labels"]}
            for r, prompt in pairs
        ]

    def _write(self, records: list[dict[str, Any]]) -> None:
        if self.share["process_index"] != 0:
            return
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.file, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
        except OSError as error:  # a full disk stops no training
            logger.error(say("{file} cannot be written: {error}", file=self.file, error=error))

    def _read(self) -> list[dict[str, Any]]:
        lines = self.file.read_text(encoding="utf-8").splitlines() if self.file.is_file() else []
        return [json.loads(line) for line in lines]


def probe_rows(rows: Rows, tokenizer: PreTrainedTokenizerBase, arguments: Arguments) -> datasets.Dataset | None:
    """The prompts to answer, as `prompt_rows` has them: those of `probe_prompts`, else the first rows of the run.

    Held-out rows come first: those of the validation file, then the test file, then the training file.
    """
    prompts = arguments.data.probe_prompts
    if prompts is not None:
        if not prompts:
            return None
        columns = {"prompt": prompts, "response": [""] * len(prompts)}
        encoded = encode_for_generation(columns, tokenizer, encode_options(arguments.data))
        names = ("input_ids", "reference")
        row_ids = list(range(len(prompts)))
        return datasets.Dataset.from_dict({"row_id": row_ids, "prompt": prompts, **{n: encoded[n] for n in names}})
    found = rows.validation_prompts or rows.test or rows.validation or rows.train
    if not found:
        return None
    first = found.select(range(min(_NUM_ROWS, len(found))))
    return first if "reference" in first.column_names else _without_answers(first, tokenizer)


def _without_answers(rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase) -> datasets.Dataset:
    """Rows to train on as prompts: what stands in front of the last answer."""
    columns: dict[str, list[Any]] = {"row_id": rows["row_id"][:], "input_ids": [], "prompt": [], "reference": []}
    for ids, labels in zip(rows["input_ids"][:], rows["labels"][:], strict=True):
        start = max(i for i, label in enumerate(labels) if label == IGNORED_LABEL) + 1
        columns["input_ids"].append(ids[:start])
        columns["prompt"].append(tokenizer.decode(ids[:start], skip_special_tokens=True))
        columns["reference"].append(str(tokenizer.decode(ids[start:], skip_special_tokens=True)).strip())
    return datasets.Dataset.from_dict(columns)

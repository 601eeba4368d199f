"""Answers to rows: generated in batches of like length, and on disk as soon as they exist.

Process 0 appends to `predictions.jsonl`, process r to `predictions.rank-r.jsonl` beside it; at the end they become one
file in the order of the rows. Every line names the settings it was made with, so that a run which was killed goes on
where it stopped, with any number of processes, and answers made with other settings are never taken for these.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import datasets
import torch
from peft import PeftModel
from transformers import GenerationConfig, PreTrainedTokenizerBase

from softlaunch import lifeline, preemption
from softlaunch.arguments import DataArguments, TrainingArguments
from softlaunch.collective import wait_for_all
from softlaunch.data.collate import GenerationCollator
from softlaunch.data.order import batches_of_process
from softlaunch.evaluation.whole import whole_weights
from softlaunch.files import write_text
from softlaunch.messages import clock, say
from softlaunch.run_directory import PREDICTIONS_FILE

logger = logging.getLogger(__name__)

_LOG_EVERY_S = 15.0
# Where ChatGLM3 and GLM-4 hand over to somebody else instead of ending the text
_TURN_TOKENS = ("<|user|>", "<|observation|>")


@dataclass(frozen=True)
class GenerationOptions:
    """How answers are generated; greedy unless `do_sample`. `max_new_tokens` does not count the prompt."""

    max_new_tokens: int = 128
    num_beams: int = 1
    do_sample: bool = False
    top_p: float = 0.7
    temperature: float = 0.95

    @classmethod
    def of(cls, data: DataArguments) -> "GenerationOptions":
        """What the run's arguments ask for."""
        assert data.val_max_target_length is not None  # set from max_target_length
        return cls(data.val_max_target_length, data.num_beams, data.do_sample, data.top_p, data.temperature)

    def config(self, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
        """For `generate`; nothing of the base model's own generation settings is kept."""
        turns = [tokenizer.convert_tokens_to_ids(token) for token in _TURN_TOKENS if token in tokenizer.get_vocab()]
        sampling = {"top_p": self.top_p, "temperature": self.temperature, "top_k": 0} if self.do_sample else {}
        return GenerationConfig(
            max_new_tokens=self.max_new_tokens,
            num_beams=self.num_beams,
            do_sample=self.do_sample,
            eos_token_id=[tokenizer.eos_token_id, *turns],
            pad_token_id=tokenizer.pad_token_id,
            **sampling,
        )

    def settings(self, model_digest: str, rows: datasets.Dataset) -> str:
        """Short digest of all that decides about the records: these options, the model and the rows."""
        what = [asdict(self), model_digest, rows["row_id"][:], rows["input_ids"][:], rows["reference"][:]]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:12]


def share_of_process(training: TrainingArguments) -> dict[str, int]:
    """Which rows this process answers, and how many at once: keyword arguments of `generate_answers` and `predict`."""
    return {
        "batch_size": training.per_device_eval_batch_size,
        "process_index": training.process_index,
        "num_processes": training.world_size,
    }


def generate_answers(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    rows: datasets.Dataset,
    options: GenerationOptions,
    *,
    batch_size: int,
    process_index: int = 0,
    num_processes: int = 1,
) -> Iterator[dict[str, Any]]:
    """This process's share of the answers, as they come: `row_id`, `predict`, `labels` (the reference).

    `rows`: `input_ids` (the prompt), `reference`, `row_id`. All processes call it and take all that it yields. Where
    the model's weights are split over them and cannot be put together, all of them call `generate` equally often; one
    that has run out of rows repeats its last batch and drops the answers. A run that is asked to end does so between
    two batches.
    """
    collate, ids = GenerationCollator(tokenizer.pad_token_id), rows["input_ids"][:]
    references, row_ids = rows["reference"][:], rows["row_id"][:]
    batches, num_rounds = batches_of_process([len(i) for i in ids], batch_size, process_index, num_processes)
    spare = batches[-1:] or [[0]]
    num_batches, num_tokens, start = len(batches), 0, time.monotonic()
    last_log = start
    with _generating(model, options.config(tokenizer)) as synced:
        for number in range(num_rounds if synced else num_batches):
            if synced:
                preemption.stop_if_agreed()
            elif preemption.asked_anywhere():
                break
            batch = batches[number] if number < num_batches else spare[0]
            inputs = collate([{"input_ids": ids[row]} for row in batch])
            inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
            with torch.no_grad():
                out = model.generate(**inputs, synced_gpus=synced)
            if number >= num_batches:
                continue
            new = out[:, inputs["input_ids"].shape[1] :]
            num_tokens += int((new != tokenizer.pad_token_id).sum())
            for row, text in zip(batch, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
                yield {"row_id": row_ids[row], "predict": text.strip(), "labels": references[row]}
            if time.monotonic() - last_log > _LOG_EVERY_S:
                last_log = time.monotonic()
                elapsed_s, num_done = last_log - start, number + 1
                logger.info(
                    say(
                        "answered {done:,} of {batches:,} batches, {speed:,.0f} tokens/s, {left} left",
                        done=num_done,
                        batches=num_batches,
                        speed=num_tokens / elapsed_s,
                        left=clock(elapsed_s / num_done * (num_batches - num_done)),
                    )
                )
    preemption.stop_if_agreed()


@contextmanager
def _generating(model: Any, config: GenerationConfig) -> Iterator[bool]:
    """Inside, `model.generate` follows `config` alone; yields what `whole_weights` does."""
    # `generate` fills what is not set from the base's own settings (a repetition penalty, say): replace them
    generator, training = model.get_base_model() if isinstance(model, PeftModel) else model, model.training
    before, generator.generation_config = generator.generation_config, config
    model.eval()
    try:
        with whole_weights(model) as synced:
            yield synced
    finally:
        generator.generation_config = before
        model.train(training)


def predict(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    rows: datasets.Dataset,
    options: GenerationOptions,
    *,
    directory: Path,
    settings: str,
    process_index: int = 0,
    num_processes: int = 1,
    **kwargs: Any,
) -> list[dict[str, Any]]:
    """Write an answer to every row that has none yet under `settings`; all processes call it, see `generate_answers`.

    `directory` is on a file system that all processes share. Returns the answers in the order of the rows on process 0,
    nothing on the others.
    """
    directory.mkdir(parents=True, exist_ok=True)
    done = {record["row_id"] for record in _read(directory, settings)}
    todo = [index for index, row_id in enumerate(rows["row_id"]) if row_id not in done]
    if done and todo:
        counts = {"done": len(done), "all": len(rows)}
        logger.info(say("{done:,} of {all:,} rows are answered already, going on with the rest", **counts))
    wait_for_all()  # nobody writes before everybody has read
    lifeline.note(f"answering {len(todo)} rows")
    if todo:
        share: dict[str, Any] = {"process_index": process_index, "num_processes": num_processes}
        with preemption.holding(), _part(directory, process_index).open("a+b") as file:
            _end_last_line(file)
            for record in generate_answers(model, tokenizer, rows.select(todo), options, **share, **kwargs):
                line = json.dumps({**record, "settings": settings}, ensure_ascii=False) + "\n"
                file.write(line.encode())
                file.flush()
    wait_for_all()
    return _merge(directory, settings, len(rows)) if process_index == 0 else []


def _merge(directory: Path, settings: str, num_rows: int) -> list[dict[str, Any]]:
    """One `predictions.jsonl` in the order of the rows, with the answers of `settings` alone."""
    # A kill between the two last steps below leaves answers in both places
    found = {record["row_id"]: record for record in _read(directory, settings)}
    records = [found[row_id] for row_id in sorted(found)]
    assert len(records) == num_rows, f"{len(records)} answers to {num_rows} rows in {directory}"
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    write_text(directory / PREDICTIONS_FILE, "".join(lines))
    for part in directory.glob("predictions.rank-*.jsonl"):
        part.unlink()
    return records


def write_original_format(records: list[dict[str, Any]], file: Path) -> None:
    """`generated_predictions.txt` as the original scripts write it: one JSON object a line, `labels` and `predict`."""
    lines = [json.dumps({key: record[key] for key in ("labels", "predict")}, ensure_ascii=False) for record in records]
    write_text(file, "".join(line + "\n" for line in lines))


def _part(directory: Path, process_index: int) -> Path:
    return directory / (PREDICTIONS_FILE if process_index == 0 else f"predictions.rank-{process_index}.jsonl")


def _end_last_line(file: BinaryIO) -> None:
    """Close a line that a kill cut off, so that the next record stands on its own."""
    if file.seek(0, os.SEEK_END):
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")


def _read(directory: Path, settings: str) -> Iterator[dict[str, Any]]:
    """The whole lines of every part that were made with `settings`; a line that a kill cut off is none."""
    for part in sorted(directory.glob("predictions*.jsonl")):
        for line in part.read_bytes().splitlines():
            try:
                record = json.loads(line)
            except ValueError:  # no JSON, or cut off within a character
                continue
            if record.get("settings") == settings:
                yield record

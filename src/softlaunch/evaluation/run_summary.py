"""What a run has left in its directory, as the few figures by which runs are compared. Reads files alone."""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softlaunch.errors import CheckpointError
from softlaunch.files import read_json_lines
from softlaunch.run_directory import CONFIG_FILE, METRICS_FILE, RECORD_FILE, SCORES, read_json, trains_last_layers

_RESULTS = {"predict": "predict_results.json", "eval": "eval_results.json"}
_TRAINED = ("adapter", "model")  # what a run has trained: an adapter, or the whole model

Curve = list[tuple[int, float]]


@dataclass(frozen=True)
class Confusion:
    """`counts[i][j]`: rows of class `names[i]` that were taken for `names[j]`."""

    names: list[str]
    counts: list[list[int]]


@dataclass(frozen=True)
class RunSummary:
    """One run. What its files do not tell is None, an empty curve or an absent score.

    `scores` are those of the test rows (`split` "predict"), or of the validation rows where there are no test results
    ("eval"); `scored_file` is where these rows came from. The loss is that of validation rows (`lost_in_validation`)
    where there is none of test rows. `saved_bytes` is the size of the weights in `adapter/` or `model/`. Curves are
    (step, loss) in the order of the steps.
    """

    name: str
    method: str | None
    split: str | None
    scored_file: str | None
    scores: dict[str, float]
    trainable: int | None
    parameters: int | None
    train_s: float | None
    peak_memory_gib: float | None
    saved_bytes: int | None
    train_curve: Curve
    validation_curve: Curve
    confusion: Confusion | None
    lost_in_validation: bool


def read_runs(directories: Iterable[Path]) -> list[RunSummary]:
    """The summary of every run, named by as much of its path's end as tells it from the others.

    Raises CheckpointError for a directory in which no run has left results.
    """
    paths = list(directories)
    return [_read_run(path, name) for path, name in zip(paths, _short_names(paths), strict=True)]


def _read_run(path: Path, name: str) -> RunSummary:
    if not path.is_dir():
        raise CheckpointError("{path}: there is no such directory. Give the output_dir of a run.", path=path)
    train = _read_json(path / "train_results.json")
    arguments = _read_json(path / RECORD_FILE).get("arguments", {})
    logged = read_json_lines(path / METRICS_FILE)
    results = {split: _read_json(path / file) for split, file in _RESULTS.items()}
    if not (any(results.values()) or train or logged):
        raise CheckpointError(
            "{path}: no run has left its results here: train_results.json, eval_results.json, predict_results.json and "
            "metrics.jsonl are all missing. Give the output_dir of a run.",
            path=path,
        )
    scores = {
        split: {n: found[f"{split}_{n}"] for n in SCORES if f"{split}_{n}" in found} for split, found in results.items()
    }
    split = next((split for split, found in scores.items() if found), None)  # test rows may bear no labels
    files = arguments.get("data", {})
    lost_in_validation = split == "predict" and "loss" not in scores["predict"] and "loss" in scores["eval"]
    if lost_in_validation:  # generated answers have none
        scores["predict"]["loss"] = scores["eval"]["loss"]
    return RunSummary(
        name=name,
        method=_method(path, arguments),
        split=split,
        scored_file=files.get("test_file" if split == "predict" else "validation_file"),
        scores=scores[split] if split else {},
        trainable=train.get("trainable_parameters"),
        parameters=train.get("parameters"),
        train_s=train.get("train_runtime"),
        peak_memory_gib=train.get("peak_memory_gib"),
        saved_bytes=_saved_bytes(path),
        train_curve=_curve(logged, "loss"),
        validation_curve=_curve(logged, "eval_loss"),
        confusion=read_confusion(path / f"{split}_confusion.csv"),
        lost_in_validation=lost_in_validation,
    )


def _method(path: Path, arguments: dict[str, Any]) -> str | None:
    """The method that the arguments name, else the kind of the adapter that was saved, else that of a whole model."""
    tuning = arguments.get("tuning", {})
    kind = _read_json(path / "adapter" / CONFIG_FILE).get("peft_type")
    whole = "freeze" if trains_last_layers(tuning) else "full"
    is_whole = (path / "model" / "config.json").is_file()
    return tuning.get("tuning") or (kind and kind.lower()) or (whole if is_whole else None)


def _short_names(paths: list[Path]) -> list[str]:
    parts = [path.resolve().parts for path in paths]
    longest = max(map(len, parts), default=1)
    for length in range(1, longest + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(set(parts)):
            break
    return names


def _read_json(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}


def _curve(records: list[dict[str, Any]], name: str) -> Curve:
    """A run that went on from a checkpoint has logged some steps twice: the last record counts."""
    return sorted({record["step"]: record[name] for record in records if name in record and "step" in record}.items())


def _saved_bytes(path: Path) -> int | None:
    files = [
        file for part in _TRAINED for pattern in ("*.safetensors", "*.bin") for file in (path / part).glob(pattern)
    ]
    return sum(file.stat().st_size for file in files) if files else None


def read_confusion(file: Path) -> Confusion | None:
    """A header with the classes' names behind one empty cell, then a row per class, its name first. None where there is
    no such file, or a part of one.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            (_, *names), *rows = csv.reader(lines)
        counts = [[int(count) for count in row[1:]] for row in rows]
    except (OSError, ValueError, csv.Error):
        return None
    is_square = [len(names)] * len(names) == [len(row) for row in counts]
    return Confusion(names, counts) if is_square and names else None

"""How far a run is, from the files in its `output_dir` alone: no process is asked, so it works from any machine."""

import json
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softlaunch.errors import CheckpointError
from softlaunch.launching.slurm import MARKER_FILE

FINISHED, PREEMPTED, RUNNING, STARTING = "finished", "preempted", "running", "starting"
SILENT, DEAD = "silent", "dead"
_SILENT_AFTER_S = 600.0
_RECENT_RECORDS = 20  # that speed is taken from


@dataclass(frozen=True)
class RunStatus:
    """None where the files do not say. `checkpoint` is the newest complete one; `restarts` since the run began; `logs`
    are those that the processes of a dead run left.
    """

    directory: Path
    state: str
    step: int | None
    num_steps: int | None
    loss: float | None
    tokens_per_second: float | None
    seconds_left: float | None
    checkpoint: str | None
    restarts: int
    scores: dict[str, float]
    silent_s: float | None  # since the last sign of life
    logs: list[str]


def read_status(directory: str | Path, now: float | None = None) -> RunStatus:
    """The status of the run in `directory`, at `now` in seconds since 1970.

    Raises CheckpointError when no run has begun there.
    """
    directory, now = Path(directory), time.time() if now is None else now
    record = _json(directory / "record.json")
    if not record:
        raise CheckpointError(
            "{directory}: no run has begun here (there is no record.json); status takes the output_dir of a run",
            directory=directory,
        )
    training = record.get("arguments", {}).get("training", {})
    metrics = [line for line in _json_lines(directory / "metrics.jsonl") if isinstance(line.get("step"), int)]
    logged = [line for line in metrics if isinstance(line.get("loss"), (int, float))]
    results = _json(directory / "train_results.json")
    last = logged[-1] if logged else {}
    num_steps = _num_steps(training, last)
    step = metrics[-1]["step"] if metrics else None
    rate = _seconds_per_step(logged)
    finished = bool(_json(directory / "run.json").get("finished"))  # and was perhaps started again since
    trained = finished or _is_newer(directory / "train_results.json", directory / "record.json")
    silent_s = _silent_s(directory, now)
    state = _state(directory, training, trained, step, silent_s)
    return RunStatus(
        directory=directory,
        state=state,
        step=step,
        num_steps=num_steps,
        loss=last.get("loss"),
        tokens_per_second=last.get("tokens_per_second", results.get("train_tokens_per_second") if trained else None),
        seconds_left=rate * (num_steps - step)  # type: ignore[operator]
        if state in (RUNNING, SILENT) and not trained and None not in (rate, num_steps, step)
        else None,
        checkpoint=newest_checkpoint(directory),
        restarts=max(0, len(record.get("starts", [])) - 1),
        scores=_scores(directory, training),
        silent_s=silent_s,
        logs=sorted(path.name for path in directory.glob("logs/rank-*.log")) if state in (DEAD, SILENT) else [],
    )


def newest_checkpoint(directory: Path) -> str | None:
    """The name of the newest checkpoint whose files are all there with the sizes that its manifest gives."""
    numbered = [p for p in directory.glob("checkpoint-*") if p.name.rpartition("-")[2].isdigit()]
    newest_first = sorted(numbered, key=lambda path: -int(path.name.rpartition("-")[2]))
    return next((path.name for path in newest_first if _is_whole(path)), None)


def _is_whole(checkpoint: Path) -> bool:
    """By the manifest, which is written last; a run of a version without manifests writes trainer_state.json last."""
    if not (checkpoint / "manifest.json").exists():
        return (checkpoint / "trainer_state.json").is_file()
    files = _json(checkpoint / "manifest.json").get("files")
    if not isinstance(files, dict):
        return False
    return all(_size(checkpoint / name) == entry.get("size") for name, entry in files.items())


def _state(directory: Path, training: dict[str, Any], trained: bool, step: int | None, silent_s: float | None) -> str:
    if (directory / MARKER_FILE).exists():
        return PREEMPTED
    later = {f"do_{step}": directory / f"{step}_results.json" for step in ("eval", "predict")}
    done = {name: _is_newer(file, directory / "record.json") for name, file in later.items()}
    asked = [name for name in done if training.get(name)]
    if (trained or not training.get("do_train")) and all(done[name] for name in asked):
        return FINISHED
    if _is_gone(_json(directory / ".lock")):
        return DEAD
    if silent_s is not None and silent_s > _SILENT_AFTER_S:
        return SILENT
    return STARTING if step is None else RUNNING


def _is_gone(owner: dict[str, Any]) -> bool:
    """Whether the process that holds the directory was one of this machine and is there no more."""
    if owner.get("host") != platform.node() or not isinstance(owner.get("process"), int) or os.name != "posix":
        return False
    try:
        os.kill(owner["process"], 0)
    except ProcessLookupError:
        return True
    except OSError:  # another user's
        return False
    return False


def _num_steps(training: dict[str, Any], last: dict[str, Any]) -> int | None:
    if isinstance(training.get("max_steps"), int) and training["max_steps"] > 0:
        return training["max_steps"]
    epoch, epochs = last.get("epoch"), training.get("num_train_epochs")
    if not epoch or not epochs:
        return None
    return max(last["step"], round(last["step"] * epochs / epoch))


def _seconds_per_step(logged: list[dict[str, Any]]) -> float | None:
    """Of the last records of this start: earlier ones end where the step goes back or stands still."""
    recent = [line for line in logged[-_RECENT_RECORDS:] if isinstance(line.get("time"), (int, float))]
    for number in range(len(recent) - 1, 0, -1):
        if recent[number]["step"] <= recent[number - 1]["step"]:
            recent = recent[number:]
            break
    if len(recent) < 2:
        return None
    return (recent[-1]["time"] - recent[0]["time"]) / (recent[-1]["step"] - recent[0]["step"])


def _scores(directory: Path, training: dict[str, Any]) -> dict[str, float]:
    """The scores of generated answers, once they are there."""
    results = _json(directory / "predict_results.json") if training.get("do_predict") else {}
    wanted = ("rouge-l", "bleu-4", "accuracy", "f1")
    return {n.removeprefix("predict_"): v for n, v in results.items() if n.removeprefix("predict_") in wanted}


def _silent_s(directory: Path, now: float) -> float | None:
    files = [p for name in ("metrics.jsonl", "record.json", "predictions*") for p in directory.glob(name)]
    files += list(directory.glob("checkpoint-*"))
    return max(0.0, now - max(path.stat().st_mtime for path in files)) if files else None


def _is_newer(path: Path, than: Path) -> bool:
    return path.exists() and path.stat().st_mtime >= than.stat().st_mtime


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _json(path: Path) -> dict[str, Any]:
    """An object; empty when the file is missing or being written."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        try:
            value = json.loads(line)
        except ValueError:
            continue  # the last line may be half written
        if isinstance(value, dict):
            yield value

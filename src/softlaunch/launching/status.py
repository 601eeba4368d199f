"""How far a run is, from the files in its `output_dir` alone: no process is asked, so it works from any machine."""

import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softlaunch.errors import CheckpointError
from softlaunch.files import read_json_lines, read_json_object
from softlaunch.run_directory import MAIN_SCORES, MARKER_FILE, METRICS_FILE, RECORD_FILE, RUN_FILE

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
    record = read_json_object(directory / RECORD_FILE)
    if not record:
        raise CheckpointError(
            "{directory}: no run has begun here (there is no record.json); status takes the output_dir of a run",
            directory=directory,
        )
    training = record.get("arguments", {}).get("training", {})
    metrics = [line for line in read_json_lines(directory / METRICS_FILE) if isinstance(line.get("step"), int)]
    logged = [line for line in metrics if isinstance(line.get("loss"), (int, float))]
    results = read_json_object(directory / "train_results.json")
    last = logged[-1] if logged else {}
    num_steps = _num_steps(training, last)
    step = metrics[-1]["step"] if metrics else None
    rate = _seconds_per_step(logged)
    finished = bool(read_json_object(directory / RUN_FILE).get("finished"))  # and was perhaps started again since
    trained = finished or _is_newer(directory / "train_results.json", directory / RECORD_FILE)
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
    """By the manifest, which is written last."""
    files = read_json_object(checkpoint / "manifest.json").get("files")
    if not isinstance(files, dict):
        return False
    return all(_size(checkpoint / name) == entry.get("size") for name, entry in files.items())


def _state(directory: Path, training: dict[str, Any], trained: bool, step: int | None, silent_s: float | None) -> str:
    if (directory / MARKER_FILE).exists():
        return PREEMPTED
    later = {f"do_{step}": directory / f"{step}_results.json" for step in ("eval", "predict")}
    done = {name: _is_newer(file, directory / RECORD_FILE) for name, file in later.items()}
    asked = [name for name in done if training.get(name)]
    if (trained or not training.get("do_train")) and all(done[name] for name in asked):
        return FINISHED
    if _is_gone(read_json_object(directory / ".lock")):
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
    """A few of the test rows, once they are there."""
    results = read_json_object(directory / "predict_results.json") if training.get("do_predict") else {}
    found = {name: results.get(f"predict_{name}") for name in MAIN_SCORES if name != "loss"}
    return {name: value for name, value in found.items() if isinstance(value, (int, float))}


def _silent_s(directory: Path, now: float) -> float | None:
    files = [p for name in (METRICS_FILE, RECORD_FILE, "predictions*") for p in directory.glob(name)]
    files += list(directory.glob("checkpoint-*"))
    return max(0.0, now - max(path.stat().st_mtime for path in files)) if files else None


def _is_newer(path: Path, than: Path) -> bool:
    return path.exists() and path.stat().st_mtime >= than.stat().st_mtime


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None

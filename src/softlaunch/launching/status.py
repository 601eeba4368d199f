"""How far a run is, from the files in its `output_dir` alone: no process is asked, so it works from any machine."""

import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softlaunch.errors import CheckpointError
from softlaunch.files import is_inside, read_json_lines, read_json_object
from softlaunch.run_directory import (
    MAIN_SCORES,
    MANIFEST_FILE,
    MARKER_FILE,
    METRICS_FILE,
    RECORD_FILE,
    RUN_FILE,
    checkpoints,
)

FINISHED, PREEMPTED, RUNNING, STARTING = "finished", "preempted", "running", "starting"
SILENT, DEAD = "silent", "dead"
_SILENT_AFTER_S = 600.0
_RECENT_RECORDS = 20  # that speed is taken from
_LARGEST_NUMBER = 1e15  # that a run writes


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
    training = _object(_object(record.get("arguments")).get("training"))
    metrics = [line for line in read_json_lines(directory / METRICS_FILE) if _is_step(line.get("step"))]
    logged = [line for line in metrics if _number(line.get("loss")) is not None]
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
        tokens_per_second=_number(
            last.get("tokens_per_second", results.get("train_tokens_per_second") if trained else None)
        ),
        seconds_left=rate * (num_steps - step)  # type: ignore[operator]
        if state in (RUNNING, SILENT) and not trained and None not in (rate, num_steps, step)
        else None,
        checkpoint=newest_checkpoint(directory),
        restarts=max(0, len(starts) - 1) if isinstance(starts := record.get("starts"), list) else 0,
        scores=_scores(directory, training),
        silent_s=silent_s,
        logs=sorted(path.name for path in directory.glob("logs/rank-*.log")) if state in (DEAD, SILENT) else [],
    )


def newest_checkpoint(directory: Path) -> str | None:
    """The name of the newest checkpoint of this run whose files are all there with the sizes that its manifest gives.

    One of the run that was here before a `restart` is none: nobody goes on from it.
    """
    run_id = read_json_object(directory / RUN_FILE).get("id")
    return next((path.name for path in reversed(checkpoints(directory)) if _is_whole(path, run_id)), None)


def _is_whole(checkpoint: Path, run_id: Any) -> bool:
    manifest = read_json_object(checkpoint / MANIFEST_FILE)
    files = manifest.get("files")
    if not isinstance(files, dict) or (run_id is not None and manifest.get("run_id") not in (run_id, None)):
        return False
    return all(
        is_inside(name) and isinstance(entry, dict) and _size(checkpoint / name) == entry.get("size")
        for name, entry in files.items()
    )


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
    except (OSError, OverflowError):  # another user's; no process at all
        return False
    return False


def _num_steps(training: dict[str, Any], last: dict[str, Any]) -> int | None:
    if _is_step(training.get("max_steps")) and training["max_steps"] > 0:
        return training["max_steps"]
    epoch, epochs = _number(last.get("epoch")), _number(training.get("num_train_epochs"))
    if not epoch or not epochs:
        return None
    steps = _number(last["step"] * epochs / epoch)
    return None if steps is None else max(last["step"], round(steps))


def _seconds_per_step(logged: list[dict[str, Any]]) -> float | None:
    """Of the last records of this start: earlier ones end where the step goes back or stands still."""
    recent = [line for line in logged[-_RECENT_RECORDS:] if _number(line.get("time")) is not None]
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
    return {name: number for name, value in found.items() if (number := _number(value)) is not None}


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float | None:
    """A number that a run may have written; None for other values, not finite ones among them."""
    is_one = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _LARGEST_NUMBER
    return value if is_one else None


def _is_step(value: Any) -> bool:
    return isinstance(value, int) and _number(value) is not None


def _silent_s(directory: Path, now: float) -> float | None:
    files = [p for name in (METRICS_FILE, RECORD_FILE, "predictions*") for p in directory.glob(name)]
    files += list(directory.glob("checkpoint-*"))
    return max(0.0, now - max(path.stat().st_mtime for path in files)) if files else None


def _is_newer(path: Path, than: Path) -> bool:
    return path.exists() and path.stat().st_mtime >= than.stat().st_mtime


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:  # a name that is too long
        return None

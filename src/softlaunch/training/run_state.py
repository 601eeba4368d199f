"""`run.json`: which training run an output directory holds, and what of it is left to do."""

import copy
import dataclasses
import logging
import os
import platform
import shutil
import uuid
from pathlib import Path
from typing import Any

from softlaunch.arguments import Arguments
from softlaunch.collective import decided_by_first
from softlaunch.errors import ArgumentError, CheckpointError
from softlaunch.files import read_json_object, write_json
from softlaunch.messages import say
from softlaunch.preemption import MARKER_FILE
from softlaunch.training import lock
from softlaunch.training.checkpoint import INCOMPLETE, checkpoints
from softlaunch.training.identity import differences, identity
from softlaunch.training.manifest import read_manifest

logger = logging.getLogger(__name__)

RUN_FILE = "run.json"


def open_run(arguments: Arguments) -> Arguments:
    """Take hold of `output_dir` and find out what is left to do there; all processes call it.

    Returns the arguments of that: without `restart` when this job has begun anew before, without `do_train` when the
    run is finished. Raises LaunchError when another run is at work there, CheckpointError when the directory holds a
    run with other arguments, rows or base model, which are named.
    """
    begun, finished = decided_by_first(lambda: _open_or_refuse(arguments))
    training, tuning = copy.copy(arguments.training), arguments.tuning
    training.restart = training.restart and not begun
    if finished:
        training.do_train = False
        tuning = dataclasses.replace(tuning, adapter=None)
    return dataclasses.replace(arguments, training=training, tuning=tuning)


def read_run(output_dir: Path) -> dict[str, Any]:
    """The content of `run.json`; an empty dictionary when there is none."""
    return read_json_object(output_dir / RUN_FILE)


def finish_run(output_dir: Path) -> None:
    """Note that the training is done and its result saved; the first process calls it."""
    run = read_run(output_dir)
    if run:
        write_json(output_dir / RUN_FILE, {**run, "finished": True})


def _open_or_refuse(arguments: Arguments) -> tuple[bool, bool]:
    try:
        return _open(arguments)
    except OSError as error:
        raise ArgumentError(
            "output_dir {output_dir} cannot be written: {strerror}; name a directory that you may write to",
            output_dir=arguments.training.output_dir,
            strerror=error.strerror or error,
        ) from error


def _open(arguments: Arguments) -> tuple[bool, bool]:
    """(whether `restart` was done before by this job, whether the training is finished)"""
    training = arguments.training
    output_dir = Path(str(training.output_dir))
    output_dir.mkdir(parents=True, exist_ok=True)
    lock.take(output_dir)
    (output_dir / MARKER_FILE).unlink(missing_ok=True)
    shutil.rmtree(output_dir / INCOMPLETE, ignore_errors=True)
    if not training.do_train:
        return False, False
    run, now = read_run(output_dir), identity(arguments)
    begun = training.restart and run.get("job") == _job() is not None
    if training.restart and not begun:
        _begin(output_dir, now, earlier=sorted(path.name for path in output_dir.glob("checkpoint-*")))
        return False, False
    finished = bool(run.get("finished")) and any((output_dir / name).is_dir() for name in ("adapter", "model"))
    going_on = [path for path in checkpoints(output_dir) if run.get("id") in (None, read_manifest(path).get("run_id"))]
    if not finished and not going_on:
        _begin(output_dir, now, earlier=run.get("earlier", []))
        return begun, False
    _compare(output_dir, run or read_manifest(going_on[-1]).get("run", {}), now, arguments)
    if not run:
        _begin(output_dir, now, run_id=read_manifest(going_on[-1]).get("run_id"))
    if finished:
        logger.info(say("the training in {output_dir} is finished; set restart to train anew", output_dir=output_dir))
    return begun, finished


def _begin(output_dir: Path, now: dict[str, Any], *, earlier: Any = (), run_id: str | None = None) -> None:
    run = {"id": run_id or uuid.uuid4().hex, "job": _job(), "finished": False, "earlier": list(earlier), **now}
    write_json(output_dir / RUN_FILE, run)


def _compare(output_dir: Path, earlier: dict[str, Any], now: dict[str, Any], arguments: Arguments) -> None:
    changed = differences(earlier, now)
    asked = str(arguments.training.resume_from_checkpoint or "true").lower() != "true"
    if changed and asked:
        logger.warning(say("not as when this run began:\n{changed}", changed="\n".join(changed)))
    elif changed:
        raise CheckpointError(
            "{output_dir} holds a run that is not this one:\n{changed}\nPut this back to go on with it, set restart to "
            "begin anew, or name another output_dir",
            output_dir=output_dir,
            changed="\n".join(changed),
        )


def _job() -> str | None:
    """What tells a job's second start from another job: a scheduler or a launcher starts it again as it was."""
    if "SLURM_JOB_ID" in os.environ:
        return f"slurm {os.environ['SLURM_JOB_ID']}"
    if "TORCHELASTIC_RESTART_COUNT" in os.environ:
        return f"launcher {platform.node()} {os.getppid()}"
    return None

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
from softlaunch.errors import CheckpointError
from softlaunch.files import read_json_object, write_json
from softlaunch.messages import say
from softlaunch.run_directory import MARKER_FILE, RUN_FILE, checkpoints, step_of
from softlaunch.training import lock
from softlaunch.training.checkpoint import INCOMPLETE, displaced
from softlaunch.training.identity import differences, doubts, identity
from softlaunch.training.manifest import read_manifest

logger = logging.getLogger(__name__)


def find_run(arguments: Arguments) -> Arguments:
    """Find out what is left to do in `output_dir`; all processes call it, and nothing is written.

    Returns the arguments of that: without `restart` when this job has begun anew before, without `do_train` when the
    run is finished, and with `run`, what `take_run` is to write. Raises CheckpointError when the directory holds a run
    with other arguments, rows or base model, which are named.
    """
    if not arguments.training.do_train:
        return arguments
    run, begun = decided_by_first(lambda: _find(arguments))
    training, tuning = copy.copy(arguments.training), arguments.tuning
    training.restart = training.restart and not begun
    if run["finished"]:
        training.do_train = False
        tuning = dataclasses.replace(tuning, adapter=None)
    return dataclasses.replace(arguments, training=training, tuning=tuning, run=run)


def take_run(output_dir: Path, arguments: Arguments) -> None:
    """Hold `output_dir` until this process ends, clear leftovers and write `run.json`; the first process calls it.

    Raises LaunchError when another run is at work there, OSError when it cannot be written.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    lock.take(output_dir)
    for lies, place in displaced(output_dir):
        lies.rename(place)
    shutil.rmtree(output_dir / INCOMPLETE, ignore_errors=True)
    (output_dir / MARKER_FILE).unlink(missing_ok=True)
    if arguments.run:
        write_json(output_dir / RUN_FILE, dict(arguments.run))


def read_run(output_dir: Path) -> dict[str, Any]:
    """The content of `run.json`; an empty dictionary when there is none, or one of another kind."""
    run = read_json_object(output_dir / RUN_FILE)
    is_one = isinstance(run.get("id"), str) and isinstance(run.get("earlier", []), list)
    return run if is_one else {}


def finish_run(output_dir: Path) -> None:
    """Note that the training is done and its result saved; the first process calls it."""
    run = read_run(output_dir)
    if run:
        write_json(output_dir / RUN_FILE, {**run, "finished": True})


def _find(arguments: Arguments) -> tuple[dict[str, Any], bool]:
    """(the content of `run.json` for what this start is to do, whether this job has done the `restart` before)"""
    training = arguments.training
    output_dir = Path(str(training.output_dir))
    run, now = read_run(output_dir), identity(arguments)
    lost = {place: lies for lies, place in displaced(output_dir)}  # `take_run` puts them back
    begun = training.restart and run.get("job") == _job() is not None
    if training.restart and not begun:
        return _new_run(now, earlier=sorted(path.name for path in (*output_dir.glob("checkpoint-*"), *lost))), False
    finished = bool(run.get("finished")) and any((output_dir / name).is_dir() for name in ("adapter", "model"))
    found = [*checkpoints(output_dir), *(path for path in lost.values() if read_manifest(path))]
    going_on = [path for path in found if run.get("id") in (None, read_manifest(path).get("run_id"))]
    if not finished and not going_on:
        return _new_run(now, earlier=run.get("earlier", [])), begun
    newest = read_manifest(max(going_on, key=step_of)) if going_on else {}
    changed = _compare(output_dir, run or newest.get("run") or {}, now, arguments)
    if not run:  # a checkpoint that was copied here
        run = _new_run(now, run_id=newest.get("run_id"))
    if changed:  # more epochs, say
        return {**run, **now, "finished": False}, begun
    if finished:
        logger.info(say("the training in {output_dir} is finished; set restart to train anew", output_dir=output_dir))
    return {**run, "finished": finished}, begun


def _new_run(now: dict[str, Any], *, earlier: Any = (), run_id: Any = None) -> dict[str, Any]:
    run_id = str(run_id or uuid.uuid4().hex)
    return {"id": run_id, "job": _job(), "finished": False, "earlier": [str(name) for name in earlier], **now}


def _compare(output_dir: Path, earlier: dict[str, Any], now: dict[str, Any], arguments: Arguments) -> list[str]:
    """What is not as it was: allowed to a run that names the checkpoint to go on from, CheckpointError otherwise."""
    changed, doubtful = differences(earlier, now), doubts(earlier, now)
    if doubtful:
        logger.warning(say("not quite as when this run began:\n{doubtful}", doubtful="\n".join(doubtful)))
    asked = str(arguments.training.resume_from_checkpoint or "true").lower() != "true"
    if changed and asked:
        logger.warning(say("not as when this run began:\n{changed}", changed="\n".join(changed)))
    elif changed:
        raise CheckpointError(
            "{output_dir} holds a run that is not this one:\n{changed}\nPut this back to go on with it, set restart to "
            "begin anew, or name another output_dir. (To go on with what changed, name a checkpoint in "
            "resume_from_checkpoint.)",
            output_dir=output_dir,
            changed="\n".join(changed),
        )
    return changed


def _job() -> str | None:
    """What tells a job's second start from another job: a scheduler or a launcher starts it again as it was.

    `SOFTLAUNCH_JOB` stands in a Kubernetes manifest, whose pods have nothing else in common.
    """
    if "SOFTLAUNCH_JOB" in os.environ:
        return f"job {os.environ['SOFTLAUNCH_JOB']}"
    if "SLURM_JOB_ID" in os.environ:
        return f"slurm {os.environ['SLURM_JOB_ID']}"
    if "TORCHELASTIC_RESTART_COUNT" in os.environ:
        return f"launcher {platform.node()} {os.getppid()}"
    return None

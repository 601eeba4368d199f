"""The first step of every run, before anything is loaded or written."""

import tempfile
from collections.abc import Collection
from pathlib import Path

from transformers import set_seed

from softlaunch import lifeline, preemption
from softlaunch.arguments import Arguments
from softlaunch.collective import broadcast_from_first, decided_by_first, several
from softlaunch.errors import ArgumentError
from softlaunch.models import check_base, load_skeleton
from softlaunch.record import write_record
from softlaunch.training.launch_check import check_launch
from softlaunch.training.processes import prepare_processes
from softlaunch.training.run_state import find_run, take_run
from softlaunch.tuning import earlier_adapter, earlier_model
from softlaunch.tuning.attention import check_implementation
from softlaunch.tuning.formats import check_prefix, is_prefix
from softlaunch.tuning.from_arguments import check_new_prefix
from softlaunch.tuning.own_settings import check_own_settings


def begin(arguments: Arguments, methods: Collection[str] | None = None) -> Arguments:
    """Check what a run that trains `methods` needs, and seed the random numbers; all processes call it. (None: what is
    trained of a classifier is checked where it is made.)

    It returns the arguments of what is left to do: a run that is finished does not train again. What an earlier run
    left is not touched, so that a mistake costs nothing. From here on a scheduler's signal ends the run in good order.

    Raises LaunchError when the processes do not work together or their launch cannot go well (see `check_launch`),
    ArgumentError when `output_dir` cannot be written or options do not suit the base, CheckpointError when base or
    adapter cannot be loaded, or when `output_dir` holds a run with other arguments, rows or base.
    """
    training = arguments.training
    output_dir = Path(str(training.output_dir))
    _check_writable(output_dir)
    check_launch(arguments, methods)
    prepare_processes(training)
    preemption.listen(output_dir, is_first=training.process_index == 0)
    if several():
        lifeline.connect(training.process_index, training.world_size, broadcast_from_first)
    check_base(arguments, answers=methods is not None)
    left_to_do = find_run(arguments)
    if methods is not None:
        _check_tuning(left_to_do, methods)
    set_seed(training.seed)
    return left_to_do


def record_run(arguments: Arguments) -> None:
    """Take hold of `output_dir` and write `record.json`, once all that the run needs is loaded; all processes call it.

    Raises ArgumentError when it cannot be written, LaunchError when another run is at work there.
    """
    output_dir = Path(str(arguments.training.output_dir))
    decided_by_first(lambda: _record(arguments, output_dir))
    lifeline.open_log(output_dir)


def _record(arguments: Arguments, output_dir: Path) -> None:
    try:
        take_run(output_dir, arguments)
    except OSError as error:
        raise ArgumentError(
            "output_dir {output_dir} cannot be written: {strerror}; name a directory that you may write to",
            output_dir=output_dir,
            strerror=error.strerror or error,
        ) from error
    write_record(arguments, output_dir)


def _check_writable(output_dir: Path) -> None:
    """Tries it where it leaves nothing: with a file that is gone at once, in the nearest directory that exists."""
    existing = next(path for path in (output_dir, *output_dir.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise ArgumentError(
            "output_dir {output_dir} cannot be written: {strerror}; name a directory that you may write to",
            output_dir=output_dir,
            strerror=error.strerror,
        ) from error


def _check_tuning(arguments: Arguments, methods: Collection[str]) -> None:
    """Stops at a new adapter that cannot be made, at a prefix that is broken, of another length, or for another shape
    of base, and at options that are not those of the adapter.

    Whether a prefix was made for this base and not for another of the same shape is told by the weights, once they are
    there. Adapters of other kinds are checked where they are loaded.
    """
    if {"full", "freeze"} & set(methods):
        earlier_model(arguments)
        return
    path = earlier_adapter(arguments)
    if path is None and "p_tuning_v2" in methods:
        check_new_prefix(arguments)
    if path is not None and is_prefix(path):
        check_implementation(arguments.model.attn_implementation)
        base = load_skeleton(arguments.model.model_name_or_path, **arguments.model.hub)
        check_prefix(base, path, arguments.tuning.pre_seq_len)
    if path is not None:
        check_own_settings(arguments, path)

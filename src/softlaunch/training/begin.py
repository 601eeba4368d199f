"""The first step of every run, before anything is loaded."""

from pathlib import Path

from transformers import set_seed

from softlaunch import lifeline, preemption
from softlaunch.arguments import Arguments
from softlaunch.collective import broadcast_from_first, several
from softlaunch.record import write_record
from softlaunch.training.processes import prepare_processes
from softlaunch.training.run_state import open_run


def begin(arguments: Arguments) -> Arguments:
    """Check the processes, take hold of `output_dir`, write `record.json` and seed the random numbers.

    All processes call it. It returns the arguments of what is left to do: a run that is finished does not train again.
    Raises LaunchError when the processes do not work together or another run is at work in `output_dir`, ArgumentError
    when that cannot be written, CheckpointError when it holds a run with other arguments, rows or base model.
    """
    training = arguments.training
    prepare_processes(training)
    is_first, output_dir = training.process_index == 0, Path(str(training.output_dir))
    preemption.listen(output_dir, is_first=is_first)
    left_to_do = open_run(arguments)
    if several():
        lifeline.connect(output_dir, training.process_index, training.world_size, broadcast_from_first)
    if is_first:
        write_record(arguments, output_dir)
    set_seed(training.seed)
    return left_to_do

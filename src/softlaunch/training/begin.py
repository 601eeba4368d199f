"""The first step of every run, before anything is loaded."""

from transformers import set_seed

from softlaunch.arguments import Arguments
from softlaunch.record import write_record
from softlaunch.training.launch_check import check_launch
from softlaunch.training.processes import prepare_processes


def begin(arguments: Arguments) -> None:
    """Check the processes, write `record.json` and seed the random numbers; all processes call it.

    Raises LaunchError when the processes do not work together or their launch cannot go well (see `check_launch`),
    ArgumentError when `output_dir` cannot be written.
    """
    check_launch(arguments)
    prepare_processes(arguments.training)
    if arguments.training.process_index == 0:
        write_record(arguments, str(arguments.training.output_dir))
    set_seed(arguments.training.seed)

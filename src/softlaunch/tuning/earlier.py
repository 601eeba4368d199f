"""Which adapter a run starts from."""

from pathlib import Path

from softlaunch.arguments import Arguments
from softlaunch.errors import ArgumentError


def earlier_adapter(arguments: Arguments) -> str | None:
    """The directory of the adapter to load: `adapter`, or what an earlier run left in `output_dir` if this one does not
    train; None when a new one is to be made.

    Raises ArgumentError when there is nothing to load and nothing will be trained.
    """
    if arguments.tuning.adapter is not None or arguments.training.do_train:
        return arguments.tuning.adapter
    left = Path(str(arguments.training.output_dir)) / "adapter"
    if not left.is_dir():
        raise ArgumentError(
            "there is no adapter to evaluate: give adapter, the directory of a trained one, or do_train"
        )
    return str(left)

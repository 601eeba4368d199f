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


def earlier_model(arguments: Arguments) -> str:
    """Where the weights of a run come from that trains the base itself: `model_name_or_path`, or `model/`, what an
    earlier run left in `output_dir`, if this one does not train.

    Raises ArgumentError for `adapter`, and for `compare_with_base`: there is no base left to compare with.
    """
    if arguments.tuning.adapter is not None:
        raise ArgumentError(
            "adapter is {adapter}, but this recipe trains and leaves whole models: give one as model_name_or_path",
            adapter=arguments.tuning.adapter,
        )
    if arguments.data.compare_with_base:
        raise ArgumentError(
            "compare_with_base needs a base beside what was trained, and full and freeze change the base itself: "
            "let the base answer in a run of its own (do_predict with its model_name_or_path in another output_dir)"
        )
    left = Path(str(arguments.training.output_dir)) / "model"
    return str(left) if not arguments.training.do_train and left.is_dir() else arguments.model.model_name_or_path

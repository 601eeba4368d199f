"""The part of `softlaunch check` that costs nothing; every recipe does it at its start."""

import dataclasses
import os
from collections.abc import Collection
from pathlib import Path

from softlaunch.arguments import Arguments
from softlaunch.errors import UserError
from softlaunch.launching.check import require_disk
from softlaunch.launching.deepspeed_file import check_deepspeed_file
from softlaunch.launching.settings import settings_of
from softlaunch.launching.shape import read_shape
from softlaunch.launching.strategy import Machines, Strategy
from softlaunch.launching.workload import plan_workload


def check_launch(arguments: Arguments, methods: Collection[str] | None = None) -> None:
    """Look at the DeepSpeed file, and whether there is room for the checkpoints of a run that trains `methods` (None:
    what the options say).

    Raises LaunchError when the file contradicts the arguments, or the disk is too small.
    """
    training = arguments.training
    settings = settings_of(arguments.model, arguments.tuning, arguments.data, arguments.classification, training)
    plugin, strategy = training.deepspeed_plugin, Strategy("")
    if plugin is not None:
        strategy = Strategy("", int(plugin.zero_stage or 0), deepspeed_file="")
        file = training.deepspeed or os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
        if isinstance(file, (str, Path)):
            check_deepspeed_file(file, settings, training.world_size)
    if not training.do_train:
        return
    if methods and not settings.names_method:
        settings = dataclasses.replace(settings, tuning=next(iter(methods)))
    try:
        machines = Machines(training.world_size, int(training.n_gpu > 0))
        need = plan_workload(
            read_shape(settings.model_name_or_path, settings.num_classes), settings, strategy, machines
        ).disk_bytes
    except UserError:
        return  # a base that cannot be planned for, or options that are refused where they are read
    require_disk(str(training.output_dir), need)

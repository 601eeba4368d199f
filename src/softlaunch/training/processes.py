"""The processes of a run: whether all of them are there, and what they need before the model is loaded."""

import os

from softlaunch.arguments import TrainingArguments
from softlaunch.errors import LaunchError

# What MPI launchers set in place of WORLD_SIZE
_MPI_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def prepare_processes(arguments: TrainingArguments) -> None:
    """Call it once, on every process, as soon as the arguments exist and before the base model is loaded.

    Raises LaunchError when the processes do not work together as the launcher was asked to make them.
    """
    _check_world_size(arguments.world_size)
    if arguments.deepspeed_plugin is not None:
        from deepspeed import comm

        # ZeRO-3 splits the model while it is loaded and asks this for the number of processes. On GPUs Accelerate has
        # started it by now, on CPUs only torch's process group; it then takes that one over.
        if not comm.is_initialized():
            comm.init_distributed(auto_mpi_discovery=False, verbose=False)


def _check_world_size(world_size: int) -> None:
    """Processes that do not find each other would each train on all rows and write over each other's files."""
    asked = os.environ.get("WORLD_SIZE")
    if asked is not None and int(asked) != world_size:
        raise LaunchError(
            "the launcher started {asked} processes, but each sees {world_size}: they do not work together. Take "
            "a file of launch/accelerate/ for several (ddp, zero1, zero2, zero3, fsdp2), and one process per GPU",
            asked=asked,
            world_size=world_size,
        )
    # `accelerate launch` on the CPU sets the address for several processes, starts one and says nothing
    started_by_accelerate = "ACCELERATE_MIXED_PRECISION" in os.environ
    if asked is None and started_by_accelerate and "MASTER_PORT" in os.environ and _is_without_mpi():
        raise LaunchError(
            "accelerate launch was asked for several processes and started one: it does so with --cpu and with files "
            "that say use_cpu or distributed_type 'NO'. Take --config_file launch/accelerate/ddp.yaml, which also runs "
            "where there is no GPU, or give --num_processes 1 (and unset MASTER_PORT, if you have set it)"
        )


def _is_without_mpi() -> bool:
    return not any(name in os.environ for name in _MPI_SIZES)

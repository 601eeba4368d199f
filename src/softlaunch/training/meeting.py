"""Whether processes reach each other: each brings a one, and together they add them up."""

import tempfile
from datetime import timedelta
from pathlib import Path

import torch

from softlaunch.errors import LaunchError

_TIMEOUT = timedelta(seconds=60)


def add_up_launched() -> int:
    """How many of the launched processes found each other: the sum of a one from each; all of them call it.

    Raises LaunchError when they do not within a minute.
    """
    try:
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group(timeout=_TIMEOUT)
        return _sum_of_ones()
    except RuntimeError as error:
        raise LaunchError("the processes do not reach each other: {error}", error=_first_line(error)) from error


def add_up_here(num_processes: int, *, on_gpu: bool) -> int:
    """The same for processes that are started on this machine for it, one per GPU; raises LaunchError likewise."""
    with tempfile.TemporaryDirectory() as directory:
        try:
            torch.multiprocessing.spawn(_meet, (num_processes, directory, on_gpu), nprocs=num_processes)
        except Exception as error:  # what a child raised, or its exit code
            raise LaunchError(
                "{num} processes cannot work together here: {error}", num=num_processes, error=error
            ) from error
        return int(Path(directory, "sum").read_text(encoding="utf-8"))


def _meet(rank: int, num_processes: int, directory: str, on_gpu: bool) -> None:
    if on_gpu:
        torch.cuda.set_device(rank)
    torch.distributed.init_process_group(
        "nccl" if on_gpu else "gloo",
        init_method=f"file://{directory}/meeting",
        world_size=num_processes,
        rank=rank,
        timeout=_TIMEOUT,
    )
    found = _sum_of_ones()
    if rank == 0:
        Path(directory, "sum").write_text(str(found), encoding="utf-8")
    torch.distributed.destroy_process_group()


def _sum_of_ones() -> int:
    device = "cuda" if "nccl" in torch.distributed.get_backend() else "cpu"
    one = torch.ones(1, device=device)
    torch.distributed.all_reduce(one)
    return int(one.item())


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)

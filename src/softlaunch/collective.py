"""What the processes of a run do together: agree, wait, and follow the first."""

from collections.abc import Callable
from typing import TypeVar

import torch

from softlaunch.errors import UserError

T = TypeVar("T")


def any_process(flag: bool) -> bool:
    """Whether `flag` is set on any process; all of them call it together."""
    return bool(largest(int(flag)))


def largest(number: int) -> int:
    """The largest number of any process; all of them call it together."""
    if not several():
        return number
    on_gpu = torch.distributed.get_backend() != "gloo" and torch.accelerator.is_available()
    anywhere = torch.tensor(number, device=torch.accelerator.current_accelerator() if on_gpu else "cpu")
    torch.distributed.all_reduce(anywhere, op=torch.distributed.ReduceOp.MAX)
    return int(anywhere.item())


def every_process(flag: bool) -> bool:
    """Whether `flag` is set on every process; all of them call it together."""
    return not any_process(not flag)


def wait_for_all() -> None:
    """Return when every process has called it."""
    if several():
        torch.distributed.barrier()


def decided_by_first(decide: Callable[[], T]) -> T:
    """What `decide` returns on the first process, on all of them; a UserError that it raises is raised on all."""
    if not several():
        return decide()
    outcome: list = [None, None]
    if torch.distributed.get_rank() == 0:
        try:
            outcome[0] = decide()
        except UserError as error:
            outcome[1] = error
    broadcast_from_first(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def broadcast_from_first(values: list) -> None:
    """Put the first process's values in the place of those of all others."""
    torch.distributed.broadcast_object_list(values, src=0)


def several() -> bool:
    """Whether this is one of several processes that work together."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()

"""How much memory a run has needed."""

import sys

import torch

_GIB = 1024**3


def peak_memory_gib() -> float:
    """The most memory that this process has held so far: of its GPU what torch allocated, without one of the host."""
    if torch.accelerator.is_available():
        return torch.accelerator.max_memory_allocated() / _GIB
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / _GIB if sys.platform == "darwin" else peak * 1024 / _GIB

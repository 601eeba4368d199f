"""DeepSpeed without the minute in which it would compile an operation first."""

import os


def skip_compilation() -> None:
    """To be called before a run begins; without DeepSpeed it does nothing. (The op is shared memory between CPUs.)"""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        import deepspeed

        deepspeed.ops.__compatible_ops__ = {}

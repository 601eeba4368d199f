"""Reading checkpoints without running what they say."""

import copyreg
import os
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.serialization import safe_globals

from softlaunch.errors import CheckpointError

_FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


@contextmanager
def tensors_only() -> Iterator[None]:
    """Inside, `torch.load` makes tensors and plain values alone, whoever calls it: DeepSpeed asks for any object.
    What `torch.save` writes there can be read in this way.

    Raises CheckpointError in place of torch's error when a file holds others.
    """
    before = os.environ.get(_FORCE)
    os.environ[_FORCE] = "1"
    try:
        with safe_globals(_of_deepspeed()):
            yield
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            "a file of the checkpoint holds more than tensors and plain values, and is not read. Go on from another "
            "checkpoint, or begin anew (restart)"
        ) from error
    finally:
        if before is None:
            os.environ.pop(_FORCE, None)
        else:
            os.environ[_FORCE] = before


def _of_deepspeed() -> list[Any]:
    """Plain records that DeepSpeed's optimizers write into their checkpoints; none when it is not at work."""
    if "deepspeed" not in sys.modules:
        return []
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    # Python 3.11.0 to 3.11.3 pickle an enumeration's member as a call of getattr, which is no plain value
    copyreg.pickle(ZeroStageEnum, lambda stage: (ZeroStageEnum, (stage.value,)))
    return [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]

"""What DeepSpeed writes into a checkpoint, read without running it, on every Python."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.distributed

# As in Python 3.11.2, where a member of an enumeration is pickled as a call of getattr
SAVE_AND_LOAD = """
import sys, torch
from enum import Enum
from deepspeed.runtime.zero.config import ZeroStageEnum
from softlaunch.training.unpickling import tensors_only
Enum.__reduce_ex__ = lambda member, protocol: (getattr, (type(member), member.name))
with tensors_only():
    torch.save({"zero_stage": ZeroStageEnum.weights}, sys.argv[1])
    assert torch.load(sys.argv[1], weights_only=False)["zero_stage"] is ZeroStageEnum.weights
"""


def test_the_stage_is_a_plain_value(tmp_path):
    command = [sys.executable, "-c", SAVE_AND_LOAD, str(tmp_path / "state.pt")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr

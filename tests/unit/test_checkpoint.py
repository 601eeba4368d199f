"""Where a run goes on from."""

from types import SimpleNamespace

import pytest

from softlaunch.errors import CheckpointError
from softlaunch.training.checkpoint import checkpoint_to_resume


def checkpoint(output_dir, step, *, num_deepspeed_processes=0, whole=True):
    directory = output_dir / f"checkpoint-{step}"
    (directory / f"global_step{step}").mkdir(parents=True)
    for rank in range(num_deepspeed_processes):
        (directory / f"global_step{step}" / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").touch()
    if whole:
        (directory / "trainer_state.json").touch()
    return str(directory)


def resume(output_dir, *, restart=False, asked=None, deepspeed=False, world_size=1):
    plugin = object() if deepspeed else None
    arguments = {"output_dir": str(output_dir), "restart": restart, "resume_from_checkpoint": asked}
    return checkpoint_to_resume(SimpleNamespace(**arguments, deepspeed_plugin=plugin, world_size=world_size))


def test_newest_whole_checkpoint(tmp_path):
    assert resume(tmp_path) is None
    checkpoint(tmp_path, 5)
    newest = checkpoint(tmp_path, 10)
    checkpoint(tmp_path, 20, whole=False)
    assert resume(tmp_path) == resume(tmp_path, asked="true") == newest
    assert resume(tmp_path, restart=True) is None


def test_the_one_that_was_asked_for(tmp_path):
    first, broken = checkpoint(tmp_path, 5), checkpoint(tmp_path, 20, whole=False)
    checkpoint(tmp_path, 10)
    assert resume(tmp_path, asked=first) == first
    with pytest.raises(CheckpointError, match=r"checkpoint-20: no checkpoint to resume from"):
        resume(tmp_path, asked=broken)


@pytest.mark.parametrize(
    ("saved", "now", "message"),
    [
        (0, {"deepspeed": True, "world_size": 2}, "saved without DeepSpeed, and this run is under DeepSpeed with 2"),
        (2, {"world_size": 2}, "saved under DeepSpeed with 2 processes, and this run is without"),
        (2, {"deepspeed": True, "world_size": 4}, "with 2 processes, and this run is under DeepSpeed with 4"),
        (2, {"deepspeed": True, "world_size": 2}, None),
        (0, {"world_size": 4}, None),
    ],
)
def test_optimizer_state_must_fit_the_launch(saved, now, message, tmp_path):
    path = checkpoint(tmp_path, 5, num_deepspeed_processes=saved)
    if message is None:
        assert resume(tmp_path, **now) == path
        return
    with pytest.raises(CheckpointError, match=message):
        resume(tmp_path, **now)
    assert resume(tmp_path, restart=True, **now) is None

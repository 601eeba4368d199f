"""Which checkpoints are whole, which one a run goes on from, and which are deleted."""

import json
import logging
from types import SimpleNamespace

import pytest

from softlaunch.errors import CheckpointError
from softlaunch.run_directory import checkpoints
from softlaunch.training.checkpoint import checkpoint_to_resume, put_in_place, rotate
from softlaunch.training.manifest import problem, write_manifest


def checkpoint(output_dir, step, *, num_deepspeed_processes=0, whole=True, run_id="a", world_size=1):
    directory = output_dir / f"checkpoint-{step}"
    (directory / f"global_step{step}").mkdir(parents=True)
    for rank in range(num_deepspeed_processes):
        (directory / f"global_step{step}" / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").write_bytes(b"state")
    (directory / "adapter_model.safetensors").write_bytes(bytes(range(256)) * step)
    (directory / "trainer_state.json").write_text("{    }")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (directory / name).write_bytes(b"state")
    if whole:
        write_manifest(directory, {"run_id": run_id, "world_size": world_size})
    return str(directory)


def resume(output_dir, *, restart=False, asked=None, deepspeed=False, world_size=1, run_id="a"):
    plugin = object() if deepspeed else None
    arguments = {"output_dir": str(output_dir), "restart": restart, "resume_from_checkpoint": asked}
    arguments |= {"deepspeed_plugin": plugin, "world_size": world_size}
    return checkpoint_to_resume(SimpleNamespace(**arguments), run_id)


def test_newest_whole_checkpoint_of_this_run(tmp_path):
    assert resume(tmp_path) is None
    checkpoint(tmp_path, 5)
    newest = checkpoint(tmp_path, 10)
    checkpoint(tmp_path, 20, whole=False)
    checkpoint(tmp_path, 30, run_id="another")
    assert resume(tmp_path) == resume(tmp_path, asked="true") == newest
    assert resume(tmp_path, restart=True) is None
    assert resume(tmp_path, run_id="another").endswith("checkpoint-30")


def truncate(path):
    path.write_bytes(path.read_bytes()[:-3])


def zero(path):
    path.write_bytes(bytes(path.stat().st_size))


def remove(path):
    path.unlink()


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        ("adapter_model.safetensors", truncate, "has 5117 bytes instead of 5120"),
        ("adapter_model.safetensors", zero, "the content of adapter_model.safetensors is not what was written"),
        ("trainer_state.json", remove, "trainer_state.json is missing"),
        ("global_step20/zero_pp_rank_0_mp_rank_00_optim_states.pt", zero, "is not what was written"),
        ("manifest.json", truncate, "no readable manifest.json"),
        ("manifest.json", zero, "no readable manifest.json"),
        ("manifest.json", remove, "it has no manifest.json"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_and_the_reason_given(name, damage, reason, tmp_path, caplog):
    good = checkpoint(tmp_path, 10, num_deepspeed_processes=1)
    newer = checkpoint(tmp_path, 20, num_deepspeed_processes=1)
    damage(tmp_path / "checkpoint-20" / name)
    caplog.set_level(logging.INFO)
    assert resume(tmp_path, deepspeed=True, asked=None) == good
    assert reason in caplog.text
    assert newer in caplog.text
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-10"]


@pytest.mark.parametrize("content", ["[]", '{"version": 1, "files": []}', '{"version": 1, "files": {"a": 3}}', "1e999"])
def test_a_manifest_of_another_kind_makes_no_checkpoint(content, tmp_path):
    directory = tmp_path / "checkpoint-1"
    checkpoint(tmp_path, 1)
    (directory / "manifest.json").write_text(content)
    assert problem(directory)


@pytest.mark.parametrize(
    "name", ["adapter_model.safetensors", "trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth"]
)
def test_a_manifest_that_does_not_name_what_is_needed_makes_no_checkpoint(name, tmp_path):
    directory = tmp_path / "checkpoint-1"
    checkpoint(tmp_path, 1, whole=False)
    (directory / name).unlink()
    write_manifest(directory, {"only_model": False})
    assert problem(directory).endswith("is missing")
    (directory / "manifest.json").unlink()
    write_manifest(directory, {"only_model": True})
    assert (problem(directory) is None) == (name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"))


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "a/../../outside", "", ".."])
def test_a_manifest_cannot_name_files_outside_its_folder(name, tmp_path):
    (tmp_path / "outside").write_text("")
    directory = tmp_path / "checkpoint-1"
    checkpoint(tmp_path, 1)
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["files"][name] = {"size": 0, "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}
    (directory / "manifest.json").write_text(json.dumps(manifest))
    assert "of another kind" in problem(directory)


def test_the_one_that_was_asked_for(tmp_path, caplog):
    first, unlisted, damaged = checkpoint(tmp_path, 5), checkpoint(tmp_path, 20, whole=False), checkpoint(tmp_path, 30)
    checkpoint(tmp_path, 10)
    assert resume(tmp_path, asked=first) == first
    assert resume(tmp_path, asked=unlisted) == unlisted
    assert "it cannot be told whether it is whole" in caplog.text
    truncate(tmp_path / "checkpoint-30" / "trainer_state.json")
    with pytest.raises(CheckpointError, match=r"checkpoint-30 is damaged: trainer_state.json has 3 bytes instead of 6"):
        resume(tmp_path, asked=damaged)
    with pytest.raises(CheckpointError, match=r"nowhere: no checkpoint to resume from"):
        resume(tmp_path, asked="nowhere")


@pytest.mark.parametrize(
    ("saved", "now", "message"),
    [
        (0, {"deepspeed": True, "world_size": 2}, "saved without DeepSpeed, and this run is under DeepSpeed with 2"),
        (2, {"world_size": 2}, "saved under DeepSpeed with 2 processes, and this run is without"),
        (2, {"deepspeed": True, "world_size": 4}, "with 2 processes, and this run is under DeepSpeed with 4"),
        (2, {"deepspeed": True, "world_size": 2}, None),
    ],
)
def test_optimizer_state_must_fit_the_launch(saved, now, message, tmp_path):
    path = checkpoint(tmp_path, 5, num_deepspeed_processes=saved, world_size=max(saved, 1))
    if message is None:
        assert resume(tmp_path, **now) == path
        return
    with pytest.raises(CheckpointError, match=message):
        resume(tmp_path, **now)
    assert resume(tmp_path, restart=True, **now) is None


def test_another_number_of_processes_is_explained(tmp_path, caplog):
    path = checkpoint(tmp_path, 5, world_size=2)
    assert resume(tmp_path, world_size=4) == path
    assert "saved by 2 processes and this run has 4" in caplog.text


@pytest.mark.parametrize(
    ("limit", "best", "left"),
    [
        (None, None, [5, 10, 20, 30]),
        (2, None, [20, 30]),
        (1, None, [30]),
        (1, 5, [5, 30]),
        (3, 5, [5, 20, 30]),
        (9, None, [5, 10, 20, 30]),
    ],
)
def test_rotation_keeps_the_newest_and_the_best(limit, best, left, tmp_path):
    paths = {step: checkpoint(tmp_path, step) for step in (5, 10, 20, 30)}
    checkpoint(tmp_path, 40, whole=False)  # no checkpoint: neither counted nor touched
    rotate(tmp_path, tmp_path / "checkpoint-30", {"id": "a"}, limit=limit, best=paths.get(best))
    assert sorted(int(p.name[11:]) for p in tmp_path.iterdir()) == [*left, 40]


def test_what_was_just_saved_stays_though_an_older_folder_has_a_higher_number(tmp_path):
    """After a damaged checkpoint-30 was passed over, the run saves checkpoint-15 again."""
    for step in (10, 15, 30):
        checkpoint(tmp_path, step)
    rotate(tmp_path, tmp_path / "checkpoint-15", {"id": "a"}, limit=1, best=None)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-15"]


def test_checkpoints_of_the_run_that_is_replaced_go_with_the_first_new_one(tmp_path):
    for step in (5, 10):
        checkpoint(tmp_path, step, run_id="old")
    checkpoint(tmp_path, 3)
    rotate(
        tmp_path,
        tmp_path / "checkpoint-3",
        {"id": "a", "earlier": ["checkpoint-5", "checkpoint-10"]},
        limit=None,
        best=None,
    )
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-3"]


class Killed(BaseException):
    """Ends what is under way where it stands."""


def test_killed_while_it_deletes_nothing_half_deleted_looks_like_a_checkpoint(tmp_path, monkeypatch):
    for step in (5, 10):
        checkpoint(tmp_path, step)

    def killed(path, **_):
        next(path.rglob("manifest.json")).unlink()
        raise Killed

    monkeypatch.setattr("shutil.rmtree", killed)
    with pytest.raises(Killed):
        rotate(tmp_path, tmp_path / "checkpoint-10", {"id": "a"}, limit=1, best=None)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-10"]


def test_what_cannot_be_put_in_place_leaves_what_was_there(tmp_path):
    (tmp_path / "staging").mkdir()
    (tmp_path / "x").mkdir()
    with pytest.raises(FileNotFoundError):
        put_in_place(tmp_path / "staging" / "x", tmp_path / "x")
    assert (tmp_path / "x").is_dir()


def test_put_in_place_replaces_as_a_whole(tmp_path):
    for folder, content in (("staging/x", "new"), ("x", "old")):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / content).write_text(content)
    put_in_place(tmp_path / "staging" / "x", tmp_path / "x")
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["new"]
    assert not list((tmp_path / "staging").iterdir())

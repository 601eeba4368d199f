"""Checkpoints that are whole or not there, ends in good order, and going on as if nothing had happened."""

import hashlib
import json
import logging
import os
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from softlaunch import preemption
from softlaunch.errors import CheckpointError
from softlaunch.run_directory import checkpoints
from softlaunch.training.checkpoint import checkpoint_to_resume
from softlaunch.training.manifest import problem
from softlaunch.tuning import add_prefix
from tests.bases import random_base
from tests.unit.test_trainer import losses, trainer

SAVING = {"save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 2, "max_steps": 6}
# Nine steps are more than two epochs of four; dropout draws random numbers in every one of them
LONG = {"per_device_train_batch_size": 2, "max_steps": 9, "include_num_input_tokens_seen": "all"}


@pytest.fixture(autouse=True)
def _handlers():
    before = {name: signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGUSR1)}
    yield
    for name, handler in before.items():
        signal.signal(name, handler)
    preemption._state.__init__()


def with_dropout():
    torch.manual_seed(0)
    return add_prefix(random_base("glm"), num_virtual_tokens=4, dropout=0.3)


def run(directory, **options):
    """A run with dropout, from its newest checkpoint on if it has one."""
    preemption.listen(directory, is_first=True)
    made = trainer(directory, with_dropout(), **{**LONG, **options})
    made.train(resume_from_checkpoint=checkpoint_to_resume(made.args))
    return made


def ends(directory, **options):
    """The exit code of a run that is asked to end, and its marker."""
    with pytest.raises(SystemExit) as found:
        run(directory, **options)
    return found.value.code, json.loads((directory / "preempted").read_text())


def weights(made):
    return made.model.encoder().embedding.weight


class Ask(TrainerCallback):
    """Sends this process the signal at one of Trainer's events."""

    def __init__(self, event, step, name=signal.SIGTERM):
        setattr(self, event, self._send)
        self.step, self.name = step, name

    def _send(self, args, state, control, **_):
        if state.global_step == self.step:
            os.kill(os.getpid(), self.name)


def test_every_file_is_listed_with_its_size_and_hash(tmp_path):
    trainer(tmp_path, **SAVING).train()
    directory = tmp_path / "checkpoint-6"
    manifest = json.loads((directory / "manifest.json").read_text())
    names = {path.name for path in directory.iterdir()} - {"manifest.json"}
    assert set(manifest["files"]) == names >= {"adapter_model.safetensors", "optimizer.pt", "rng_state.pth"}
    for name, entry in manifest["files"].items():
        content = (directory / name).read_bytes()
        assert entry == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert (manifest["step"], manifest["world_size"], problem(directory)) == (6, 1, None)
    assert not (tmp_path / ".incomplete").exists()


def test_best_checkpoint_is_named_as_it_lies_on_the_disk_and_stays(tmp_path):
    best = {"eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": "loss", "greater_is_better": True}
    made = trainer(tmp_path, **SAVING, **best, load_best_model_at_end=True, save_total_limit=2)
    made.train()
    assert made.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-6"]
    for path in checkpoints(tmp_path):
        saved = json.loads((path / "trainer_state.json").read_text())
        assert saved["best_model_checkpoint"] == made.state.best_model_checkpoint
        assert problem(path) is None


def test_the_best_checkpoint_is_found_where_the_run_was_moved_to(tmp_path):
    best = {"eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": "loss", "greater_is_better": True}
    options = {**SAVING, **best, "load_best_model_at_end": True}
    trainer(tmp_path / "run", **options).train()
    (tmp_path / "run").rename(tmp_path / "moved")
    made = trainer(tmp_path / "moved", **{**options, "max_steps": 8})
    made.train(resume_from_checkpoint=str(tmp_path / "moved" / "checkpoint-6"))
    assert made.state.best_model_checkpoint == str(tmp_path / "moved" / "checkpoint-2")


@pytest.fixture
def small_disk(tmp_path):
    directory = tmp_path / "disk"
    directory.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", directory], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no tmpfs can be mounted here")
    yield directory
    subprocess.run(["umount", directory], check=True)


def fill(directory, left=12 * 1024):
    """Leave less than a checkpoint needs."""
    free = os.statvfs(directory).f_bavail * os.statvfs(directory).f_frsize
    with (directory / "ballast").open("ab") as file:
        file.write(bytes(free - left))


class FullAfter(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_save(self, args, state, control, **_):
        if state.global_step == self.step:
            fill(Path(args.output_dir))


def test_full_disk_is_reported_and_training_goes_on(small_disk, caplog):
    made = trainer(small_disk, **SAVING, callbacks=[FullAfter(2)])
    made.train()
    assert made.state.global_step == 6
    assert "checkpoint 4 could not be saved on process 0, with 0 MB free on the disk" in caplog.text
    assert [path.name for path in checkpoints(small_disk)] == ["checkpoint-2"]
    assert problem(small_disk / "checkpoint-2") is None
    assert not (small_disk / ".incomplete").exists()
    fill(small_disk, left=0)
    with pytest.raises(CheckpointError, match=r"could not be written.*Make room"):
        made.save_result("adapter", made.save_model)
    assert not (small_disk / "adapter").exists()
    (small_disk / "ballast").unlink()
    made.save_result("adapter", made.save_model)
    good = {path.name: path.read_bytes() for path in (small_disk / "adapter").iterdir()}
    fill(small_disk, left=4 * 1024)  # for the configuration, but not for the weights
    with pytest.raises(CheckpointError, match=r"could not be written.*Make room"):
        made.save_result("adapter", made.save_model)
    assert {path.name: path.read_bytes() for path in (small_disk / "adapter").iterdir()} == good
    assert not (small_disk / ".incomplete").exists()
    (small_disk / "ballast").unlink()
    again = trainer(small_disk, **SAVING)
    again.train(resume_from_checkpoint=checkpoint_to_resume(again.args))
    again.save_result("adapter", again.save_model)
    assert torch.equal(weights(again), weights(made))


def test_an_error_that_is_not_the_disks_is_not_swallowed(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("a defect")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(RuntimeError, match="a defect"):
        trainer(tmp_path, **SAVING).train()


@pytest.mark.parametrize("step", [1, 4, 7, 9])
@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGUSR1])
def test_asked_to_end_between_steps(step, name, tmp_path):
    whole = run(tmp_path / "whole")
    code, marker = ends(tmp_path, callbacks=[Ask("on_step_end", step, name)])
    assert code == 143
    assert (marker["signal"], marker["checkpoint"]) == (name.name, f"checkpoint-{step}")
    again = run(tmp_path)
    assert torch.equal(weights(again), weights(whole))
    assert losses(again) == losses(whole)
    assert again.state.num_input_tokens_seen == whole.state.num_input_tokens_seen > 0
    assert again.optimizer.state_dict()["state"][0]["step"] == 9
    assert again.lr_scheduler.state_dict() == whole.lr_scheduler.state_dict()


@pytest.mark.parametrize("event", ["on_step_end", "on_prediction_step"])
@pytest.mark.parametrize(("strategy", "step"), [("steps", 3), ("steps", 9), ("epoch", 4), ("epoch", 8)])
def test_asked_to_end_in_front_of_an_evaluation_or_in_it(event, strategy, step, tmp_path):
    """The evaluation is made up for, and what it decides (the best checkpoint) is the same."""
    best = {"eval_strategy": strategy, "save_strategy": strategy, "eval_steps": 3, "save_steps": 3}
    best |= {"load_best_model_at_end": True, "metric_for_best_model": "loss", "per_device_eval_batch_size": 3}
    whole = run(tmp_path / "whole", **best)
    code, marker = ends(tmp_path, **best, callbacks=[Ask(event, step)])
    assert (code, marker["checkpoint"]) == (143, f"checkpoint-{step}")
    again = run(tmp_path, **best)
    evaluations = [[r["eval_loss"] for r in made.state.log_history if "eval_loss" in r] for made in (whole, again)]
    assert evaluations[0] == evaluations[1]
    assert (again.state.best_global_step, again.state.best_metric) == (
        whole.state.best_global_step,
        whole.state.best_metric,
    )
    assert torch.equal(weights(again), weights(whole))
    assert losses(again) == losses(whole)
    assert [p.name for p in checkpoints(tmp_path)] == [p.name for p in checkpoints(tmp_path / "whole")]


def test_going_on_from_the_last_step_trains_no_further(tmp_path):
    whole = run(tmp_path, save_strategy="steps", save_steps=9)
    again = run(tmp_path, save_strategy="steps", save_steps=9)
    assert again.state.global_step == 9
    assert torch.equal(weights(again), weights(whole))


def test_outside_of_training_a_signal_ends_at_once_and_worker_processes_die_as_ever(tmp_path):
    preemption.listen(tmp_path, is_first=True)
    child = os.fork()
    if child == 0:
        os.kill(os.getpid(), signal.SIGTERM)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGTERM
    assert not (tmp_path / "preempted").exists()
    with pytest.raises(preemption.Preempted):
        os.kill(os.getpid(), signal.SIGTERM)
    assert json.loads((tmp_path / "preempted").read_text())["checkpoint"] is None


def test_the_message_says_what_to_do(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    ends(tmp_path, callbacks=[Ask("on_step_end", 2)])
    assert "asked to end by SIGTERM: start the run again to go on" in caplog.text

"""What a second start in the same output directory does."""

import dataclasses
import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from softlaunch.arguments import parse_arguments
from softlaunch.errors import ArgumentError, CheckpointError, LaunchError
from softlaunch.training import identity
from softlaunch.training.manifest import write_manifest
from softlaunch.training.run_state import find_run, finish_run, read_run, take_run


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Opens the run of these flags; files are made beside it."""
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    (tmp_path / "base" / "model.safetensors").write_bytes(bytes(10_000_000))
    for name in ("train.json", "validation.json", "test.json"):
        (tmp_path / name).write_text('{"prompt": "a", "response": "b"}\n')

    def run(*flags, do_train=True):
        words = ["--model_name_or_path", tmp_path / "base", "--output_dir", tmp_path / "run", "--pre_seq_len", "4"]
        for name in ("train", "validation", "test"):
            words += [f"--{name}_file", tmp_path / f"{name}.json"]
        words += ["--do_train" if do_train else "--do_predict"]
        left = find_run(parse_arguments([*map(str, words), *flags]))
        take_run(Path(left.training.output_dir), left)
        return left

    return run


def save(tmp_path, step):
    run = read_run(tmp_path / "run")
    directory = tmp_path / "run" / f"checkpoint-{step}"
    directory.mkdir()
    write_manifest(directory, {"run_id": run["id"], "run": run})


def test_same_arguments_go_on_and_harmless_ones_may_change(start, tmp_path):
    start("--learning_rate", "0.1")
    save(tmp_path, 5)
    run = read_run(tmp_path / "run")
    left = start(
        "--learning_rate", "0.1", "--logging_steps", "7", "--save_steps", "3", "--do_predict", "--num_beams", "2"
    )
    assert left.training.do_train
    assert read_run(tmp_path / "run") == run


def test_changed_arguments_are_named(start, tmp_path):
    start("--learning_rate", "0.1", "--lr_scheduler_type", "cosine")
    save(tmp_path, 5)
    before = (tmp_path / "run" / "run.json").read_text()
    with pytest.raises(CheckpointError) as found:
        start("--learning_rate", "0.2", "--lr_scheduler_type", "cosine", "--max_source_length", "32")
    assert "  learning_rate: 0.1 → 0.2" in str(found.value)
    assert "  max_source_length: 64 → 32" in str(found.value)
    assert "cosine" not in str(found.value)
    assert "restart" in str(found.value)
    assert (tmp_path / "run" / "run.json").read_text() == before
    assert start("--learning_rate", "0.2", "--restart").training.restart
    assert read_run(tmp_path / "run")["id"] != json.loads(before)["id"]
    assert read_run(tmp_path / "run")["earlier"] == ["checkpoint-5"]


def test_an_explicit_checkpoint_is_taken_with_other_arguments(start, tmp_path, caplog):
    start("--learning_rate", "0.1")
    save(tmp_path, 5)
    start("--learning_rate", "0.2", "--resume_from_checkpoint", str(tmp_path / "run" / "checkpoint-5"))
    assert "learning_rate: 0.1 → 0.2" in caplog.text


def test_before_the_first_checkpoint_nothing_is_lost_by_other_arguments(start, tmp_path):
    start("--learning_rate", "0.1")
    start("--learning_rate", "0.2")
    assert read_run(tmp_path / "run")["arguments"]["learning_rate"] == 0.2


def change(path):
    path.write_bytes(path.read_bytes().replace(b"a", b"c"))


def scribble(path):
    with path.open("r+b") as file:
        file.seek(5_000_000)
        file.write(b"1" * 8_000)


def test_what_may_change_the_result_is_named_and_the_run_goes_on(start, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(identity, "_WHOLE_BYTES", 1_000_000)
    split = ("--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "4")
    start(*split)
    save(tmp_path, 5)
    start(*split)
    assert "not quite" not in caplog.text
    with (tmp_path / "base" / "model.safetensors").open("r+b") as file:
        file.seek(5_000_000)  # between two of the blocks that are compared
        file.write(b"1")
    start("--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "2")
    assert "per_device_train_batch_size × gradient_accumulation_steps: 2 × 4 → 4 × 2" in caplog.text
    assert "model.safetensors of the base model was written anew" in caplog.text


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("train.json", change, "the content of train_file has changed"),
        ("base/model.safetensors", scribble, "the base model has changed: model.safetensors"),
        ("base/config.json", lambda path: path.write_text('{"a": 1}'), "the base model has changed: config.json"),
    ],
)
def test_changed_files_are_named(name, edit, message, start, tmp_path):
    start()
    save(tmp_path, 5)
    edit(tmp_path / name)
    with pytest.raises(CheckpointError, match=message):
        start()


def test_files_that_decide_nothing_may_change(start, tmp_path):
    start()
    save(tmp_path, 5)
    change(tmp_path / "test.json")
    change(tmp_path / "validation.json")
    start()
    best = ("--load_best_model_at_end", "--eval_strategy", "steps", "--save_strategy", "steps")
    start("--restart", *best)
    save(tmp_path, 10)
    (tmp_path / "validation.json").write_text("{}")
    with pytest.raises(CheckpointError, match="the content of validation_file has changed"):
        start(*best)


def test_a_finished_run_does_not_train_again(start, tmp_path, caplog):
    caplog.set_level("INFO", "softlaunch")
    start("--adapter", "some/where")
    save(tmp_path, 5)
    (tmp_path / "run" / "adapter").mkdir()
    assert start("--adapter", "some/where").training.do_train
    finish_run(tmp_path / "run")
    left = start("--adapter", "some/where", "--do_predict")
    assert (left.training.do_train, left.training.do_predict, left.tuning.adapter) == (False, True, None)
    assert "is finished; set restart to train anew" in caplog.text
    with pytest.raises(CheckpointError, match=r"learning_rate"):
        start("--adapter", "some/where", "--learning_rate", "0.3")
    assert start("--restart").training.do_train
    assert not read_run(tmp_path / "run")["finished"]


def test_a_run_that_only_predicts_leaves_the_record_of_the_training(start, tmp_path):
    start()
    before = read_run(tmp_path / "run")
    start("--num_beams", "3", do_train=False)
    assert read_run(tmp_path / "run") == before


@pytest.mark.parametrize("job", [{"SLURM_JOB_ID": "7"}, {"TORCHELASTIC_RESTART_COUNT": "1"}])
def test_restart_begins_anew_once_per_job(job, start, tmp_path, monkeypatch):
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    assert start("--restart").training.restart
    run = read_run(tmp_path / "run")
    save(tmp_path, 5)
    assert not start("--restart").training.restart
    assert read_run(tmp_path / "run") == run
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    assert start("--restart").training.restart


def test_a_checkpoint_that_was_copied_here_is_gone_on_from(start, tmp_path):
    start("--learning_rate", "0.1")
    save(tmp_path, 5)
    run_id = read_run(tmp_path / "run")["id"]
    (tmp_path / "run" / "run.json").unlink()
    with pytest.raises(CheckpointError, match=r"learning_rate: 0.1 → 0.2"):
        start("--learning_rate", "0.2")
    start("--learning_rate", "0.1")
    assert read_run(tmp_path / "run")["id"] == run_id


def test_the_second_run_in_one_directory_refuses(start, tmp_path):
    start()
    script = (
        f"from pathlib import Path; from softlaunch.training import lock; lock.take(Path({str(tmp_path / 'run')!r}))"
    )
    second = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert second.returncode == 1
    assert "is in use by another run" in second.stderr
    assert LaunchError.__name__ in second.stderr


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_warned_of(number, start, tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    start()
    assert "has no locks" in caplog.text
    assert (tmp_path / "run" / "run.json").exists()


def test_leftovers_of_an_earlier_end_are_cleared(start, tmp_path):
    start()
    (tmp_path / "run" / ".incomplete" / "checkpoint-3").mkdir(parents=True)
    (tmp_path / "run" / "preempted").write_text("{}")
    start()
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"run.json", ".lock"}


@pytest.mark.parametrize("step", [5, 3])
def test_a_checkpoint_that_was_being_replaced_is_not_lost(step, start, tmp_path):
    """Killed between the renames of the old folder and of the new one."""
    start("--learning_rate", "0.1")
    for number in {3, step}:
        save(tmp_path, number)
    run, output_dir = read_run(tmp_path / "run"), tmp_path / "run"
    (output_dir / ".incomplete").mkdir()
    (output_dir / f"checkpoint-{step}").rename(output_dir / ".incomplete" / f"earlier-checkpoint-{step}")
    shutil.copytree(output_dir / ".incomplete" / f"earlier-checkpoint-{step}", tmp_path / "new")
    (tmp_path / "new" / "new").touch()
    (tmp_path / "new").rename(output_dir / ".incomplete" / f"checkpoint-{step}")
    with pytest.raises(CheckpointError, match="learning_rate"):
        start("--learning_rate", "0.2")
    start("--learning_rate", "0.1")
    assert read_run(output_dir)["id"] == run["id"]
    assert (output_dir / f"checkpoint-{step}" / "new").exists(), "the new one, which is whole too"
    assert not (output_dir / ".incomplete").exists()

    (output_dir / ".incomplete").mkdir()
    (output_dir / f"checkpoint-{step}").rename(output_dir / ".incomplete" / f"earlier-checkpoint-{step}")
    start("--restart")
    assert f"checkpoint-{step}" in read_run(output_dir)["earlier"]
    assert (output_dir / f"checkpoint-{step}").is_dir()


@pytest.fixture
def read_only_disk(tmp_path):
    directory = tmp_path / "disk"
    directory.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", directory], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no tmpfs can be mounted here")
    yield directory
    subprocess.run(["umount", directory], check=True)


def test_read_only_output_dir(tmp_path, read_only_disk):
    from softlaunch.training.begin import record_run

    arguments = parse_arguments([*_flags(tmp_path), "--output_dir", str(read_only_disk / "run")])
    with pytest.raises(ArgumentError, match=r"cannot be written: Read-only file system"):
        record_run(arguments)


def test_no_secret_in_run_json(start, tmp_path):
    start("--token", "s3cret", "--hub_token", "s3cret", "--lr_scheduler_kwargs", '{"api_key": "s3cret"}')
    assert "s3cret" not in (tmp_path / "run" / "run.json").read_text()


def test_every_option_is_compared_or_known_to_be_free(start, tmp_path):
    """The list of free options names existing ones alone, in the oldest or the newest transformers."""
    from softlaunch.arguments.options import all_options

    known = {*all_options(), *(f.name for f in dataclasses.fields(parse_arguments(_flags(tmp_path)).training))}
    renamed = {"gradient_checkpointing_kwargs", "activation_checkpointing_kwargs", "gradient_checkpointing"}
    assert identity._FREE - known - renamed <= {"activation_checkpointing", "local_rank", "trackio_space_id"}
    assert set(identity._BEST) <= known


def _flags(tmp_path: Path):
    return ["--model_name_or_path", "x", "--output_dir", str(tmp_path / "x"), "--do_train", "--train_file", "x.json"]

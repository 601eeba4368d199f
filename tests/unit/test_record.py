"""record.json: complete, JSON only, without secrets, written whole or not at all."""

import dataclasses
import json
import subprocess
from pathlib import Path

import pytest
import transformers

from softlaunch import record
from softlaunch.arguments import Arguments, parse_arguments
from softlaunch.arguments.redact import redact, redact_argv
from softlaunch.errors import ArgumentError

FLAGS = ["--model_name_or_path", "models/x", "--output_dir", "output/x", "--do_train", "--train_file", "train.json"]


def write(directory: Path, *flags: str) -> dict:
    return json.loads(record.write_record(parse_arguments([*FLAGS, *flags]), directory).read_text(encoding="utf-8"))


def test_record_holds_the_resolved_run(tmp_path):
    written = write(
        tmp_path / "new" / "run", "--max_target_length", "9", "--lr_scheduler_type", "cosine", "--overwrite_output_dir"
    )
    groups = written["arguments"]
    assert groups["data"]["val_max_target_length"] == 9
    assert groups["training"]["lr_scheduler_type"] == "cosine"
    assert groups["training"]["accelerator_config"]["even_batches"] is True
    assert groups["model"]["model_name_or_path"] == "models/x"
    assert groups["tuning"]["prefix_init"] == "random"
    assert written["sources"]["restart"] == "--overwrite_output_dir"
    assert written["command_line"][1:3] == FLAGS[:2]
    assert any("restart" in warning for warning in written["warnings"])
    assert written["versions"]["transformers"] == transformers.__version__
    assert written["versions"]["tokenizers"] != "<hidden>"
    assert written["world_size"] == 1
    assert written["hardware"]["cpu"]
    assert written["hardware"]["cpu_cores"] > 0
    assert written["hardware"]["memory_gib"] > 0


def test_record_holds_every_field(tmp_path):
    arguments = parse_arguments(FLAGS)
    written = json.loads(record.write_record(arguments, tmp_path).read_text())["arguments"]
    for name in ("model", "tuning", "data", "training"):
        expected = {field.name for field in dataclasses.fields(getattr(arguments, name)) if field.init}
        assert set(written[name]) == expected


def test_record_never_holds_secrets(tmp_path):
    path = tmp_path / "run.json"
    path.write_text('{"hub_token": "s3cret-0", "hub_token": "s3cret-1", "pad_to_max_length": true}')
    arguments = parse_arguments(
        [
            str(path),
            *FLAGS,
            "--hub-token=s3cret-2",
            "--use_auth_token",
            "s3cret-3",
            "--lr_scheduler_kwargs",
            '{"api_key": "s3cret-4", "deeper": [{"Password": "s3cret-5"}]}',
            "--test_file",
            "https://me:s3cret-6@example.org/rows.json",
            "--run_name",
            "hf_s3cret7abcdefgh",
        ]
    )
    assert arguments.training.hub_token == "s3cret-2"
    text = record.write_record(arguments, tmp_path).read_text()
    assert "s3cret" not in text
    written = json.loads(text)
    assert written["arguments"]["training"]["hub_token"] == "<hidden>"
    assert written["arguments"]["model"]["token"] == "<hidden>"
    assert written["arguments"]["data"]["test_file"] == "https://<hidden>@example.org/rows.json"
    assert "--hub-token=<hidden>" in written["command_line"]


def test_redaction_spares_what_is_no_secret(tmp_path):
    harmless = {"average_tokens_across_devices": True, "num_tokens": 3, "hub_token": None, "token": ""}
    assert redact(harmless) == harmless
    assert redact_argv(["--include_num_input_tokens_seen", "all"]) == ["--include_num_input_tokens_seen", "all"]
    assert redact({"keys": {"a": "b"}, "tokens": ["c"]}) == {"keys": "<hidden>", "tokens": "<hidden>"}


def test_an_earlier_record_is_replaced_whole_or_kept(tmp_path, monkeypatch):
    write(tmp_path, "--seed", "1")
    assert write(tmp_path, "--seed", "2")["arguments"]["training"]["seed"] == 2

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(record.os, "fsync", fail)
    with pytest.raises(ArgumentError, match="No space left on device"):
        write(tmp_path, "--seed", "3")
    assert json.loads((tmp_path / "record.json").read_text())["arguments"]["training"]["seed"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


def test_output_dir_that_is_a_file(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(ArgumentError, match="taken cannot be written"):
        write(tmp_path / "taken")


def test_values_that_json_cannot_hold(tmp_path):
    arguments: Arguments = parse_arguments(FLAGS)
    arguments.training.lr_scheduler_kwargs = {"a": float("inf"), "b": Path("x"), "c": {"set"}, 1: (2,)}
    written = json.loads(record.write_record(arguments, tmp_path).read_text())
    assert written["arguments"]["training"]["lr_scheduler_kwargs"] == {"a": "inf", "b": "x", "c": ["set"], "1": [2]}


def git(directory: Path, *command: str) -> str:
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", "-C", str(directory), *identity, *command], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_git_state(tmp_path, monkeypatch):
    monkeypatch.delenv("GIT_DIR", raising=False)
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    git(tmp_path, "init", "--quiet")
    assert record._git_state(package) is None  # lies in a checkout, but is not tracked there
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "one")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert record._git_state(package) == {"commit": commit, "dirty": False}
    (package / "__init__.py").write_text("changed = True")
    assert record._git_state(package) == {"commit": commit, "dirty": True}
    monkeypatch.setenv("PATH", "")
    assert record._git_state(package) is None  # no git at all

"""How a program ends, and which process says so."""

import subprocess
import sys

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from softlaunch import entry
from softlaunch.errors import DataError


def end(monkeypatch, rank, main):
    """The exit code, and how long the process waited before it spoke."""
    waited = []
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(entry, "_set_up_logging", lambda: None)
    monkeypatch.setattr(entry.time, "sleep", waited.append)
    with pytest.raises(SystemExit) as found:
        entry.run(main)
    return found.value.code, waited


def fail():
    raise DataError("train.json:3: no prompt")


def test_user_error_is_its_message_and_code_2(monkeypatch, capsys):
    assert end(monkeypatch, "0", fail) == (2, [])
    assert capsys.readouterr().err == "error: train.json:3: no prompt\n"


def test_other_processes_let_the_first_speak(monkeypatch, capsys):
    code, waited = end(monkeypatch, "1", fail)
    assert code == 2
    assert len(waited) == 1
    assert capsys.readouterr().err == "error on process 1: train.json:3: no prompt\n"


def test_other_errors_keep_their_traceback(monkeypatch):
    with pytest.raises(ZeroDivisionError):
        entry.run(lambda: 1 / 0)


def test_the_libraries_say_nothing_at_the_start_and_show_no_bars(monkeypatch):
    script = """if True:
        import logging
        from softlaunch.arguments import parse_arguments
        from softlaunch import entry
        import sys, transformers, huggingface_hub.utils as hub
        assert logging.getLogger("bitsandbytes").level == logging.NOTSET
        for downloads in (True, False):
            entry.sys.stderr.isatty = lambda: downloads
            entry.run(lambda: None)
            assert not transformers.utils.logging.is_progress_bar_enabled()
            assert hub.are_progress_bars_disabled() is not downloads"""
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS", raising=False)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_deepspeed_config_is_found_in_the_project_of_the_recipe(monkeypatch, tmp_path):
    for name in ("project/recipes/recipe.py", "project/ds_configs/zero2.json", "user/mine.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path / "user")
    monkeypatch.setattr("sys.argv", [str(tmp_path / "project" / "recipes" / "recipe.py")])
    found = str(tmp_path / "project" / "ds_configs" / "zero2.json")
    for given, expected in (("ds_configs/zero2.json", found), ("mine.json", "mine.json"), ("no.json", "no.json")):
        monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", given)
        entry.run(lambda: None)
        assert entry.os.environ["ACCELERATE_DEEPSPEED_CONFIG_FILE"] == expected


def test_torch_launcher_is_given_the_message_for_its_report(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    end(monkeypatch, "0", fail)
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=2, error_file=str(tmp_path / "error.json"))
    assert "traceback : train.json:3: no prompt\n" in str(ChildFailedError("recipe.py", {0: failure}))


def test_traceback_of_accelerate_is_explained(monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    end(monkeypatch, "0", fail)
    assert "traceback" not in capsys.readouterr().err  # under torch's launcher, which sets RANK
    monkeypatch.setattr(entry, "_set_up_logging", lambda: None)
    monkeypatch.delenv("RANK")
    with pytest.raises(SystemExit):
        entry.run(fail)
    message, note = capsys.readouterr().err.splitlines()
    assert message == "error: train.json:3: no prompt"
    assert "traceback below is accelerate's own" in note


CRASHES_IN_A_DESTRUCTOR = """
import atexit, os, sys
import torch
from softlaunch import entry

class Crash:
    def __del__(self, abort=os.abort):
        abort()

crash = Crash()
atexit.register(lambda: print("exit function"))

def main():
    torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
    print("work", end=" ")
    if len(sys.argv) > 2:
        sys.exit(int(sys.argv[2]))

entry.run(main)
"""


@pytest.mark.parametrize("code", [0, 143])
def test_a_crash_after_the_work_is_not_the_work_s(code, tmp_path):
    words = [sys.executable, "-c", CRASHES_IN_A_DESTRUCTOR, str(tmp_path / "store"), *([str(code)] if code else [])]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (code, "work exit function\n"), done.stderr

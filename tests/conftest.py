"""No test touches the network or the user's caches, or depends on the user's language."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["LC_ALL"] = "C.UTF-8"

import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import pytest

from softlaunch import cli


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")
    datasets.disable_progress_bars()


@pytest.fixture(autouse=True)
def _own_log_level() -> Iterator[None]:
    """What runs as a program of its own sets the level, and leaves it so."""
    logger = logging.getLogger("softlaunch")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.fixture
def softlaunch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture
) -> Callable[..., tuple[int, str]]:
    """Runs `softlaunch WORDS…` in this process; returns its exit code and all that it said."""

    def run(*words: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["softlaunch", *map(str, words)])
        capsys.readouterr()
        caplog.clear()
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        output = capsys.readouterr()
        return code, output.out + output.err + caplog.text

    return run


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 200 kB. (Permissions would not stop a test that runs as root.)"""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", disk], check=False).returncode:
        pytest.skip("mounting a file system is not allowed here")
    yield disk
    subprocess.run(["umount", disk], check=True)

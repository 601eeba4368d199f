"""Processes that do not find each other must not go on, and `check` says whether they do."""

import os
import subprocess
from types import SimpleNamespace

import pytest

from softlaunch.errors import LaunchError
from softlaunch.training.processes import prepare_processes
from tests.distributed.processes import ROOT, TIMEOUT_S

LAUNCHER = {"ACCELERATE_MIXED_PRECISION": "no"}
SEVERAL = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def prepare(monkeypatch, world_size, **environment):
    for name in ("WORLD_SIZE", *SEVERAL, *LAUNCHER, "PMI_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    prepare_processes(SimpleNamespace(world_size=world_size, deepspeed_plugin=None))


def test_two_worlds_of_one(monkeypatch):
    with pytest.raises(LaunchError, match=r"started 2 processes, but each sees 1.*launch/accelerate"):
        prepare(monkeypatch, 1, WORLD_SIZE="2", **SEVERAL, **LAUNCHER)


def test_one_process_where_several_were_asked_for(monkeypatch):
    with pytest.raises(LaunchError, match="asked for several processes and started one"):
        prepare(monkeypatch, 1, **SEVERAL, **LAUNCHER)


@pytest.mark.parametrize(
    ("world_size", "environment"),
    [
        (1, {}),
        (1, LAUNCHER),
        (1, SEVERAL),
        (2, {"WORLD_SIZE": "2", **SEVERAL, **LAUNCHER}),
        (4, {"PMI_SIZE": "4", **SEVERAL, **LAUNCHER}),
    ],
    ids=["python", "accelerate", "address left in the environment", "accelerate with two", "MPI"],
)
def test_what_fits(world_size, environment, monkeypatch):
    prepare(monkeypatch, world_size, **environment)


@pytest.mark.distributed
def test_check_in_the_launched_processes(tmp_path):
    """They add up a number together, and a wrong option fails the launch."""
    command = ["accelerate", "launch", "--main_process_port", "0", "--config_file", "launch/accelerate/ddp.yaml"]
    command += ["--num_processes", "2", "-m", "softlaunch.cli", "check", "recipes/args/demo.json"]
    command += ["--gpus-per-node", "2", "--learning_rat", "1", "--output_dir", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=TIMEOUT_S
    )
    assert done.returncode == 1, done.stderr
    assert "did you mean --learning_rate?" in done.stdout
    assert "2 of 2 processes added up a number" in done.stdout
    assert "1 problems" in done.stdout

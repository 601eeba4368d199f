"""Processes that do not find each other must not go on."""

from types import SimpleNamespace

import pytest

from softlaunch.errors import LaunchError
from softlaunch.training.processes import prepare_processes

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

"""A further try under torch's launcher uses nothing of the store of the one before."""

import os
from datetime import timedelta

import pytest
from torch.distributed import TCPStore

from softlaunch.restarts import meet_anew


@pytest.fixture
def launcher(monkeypatch):
    """The launcher's store, and its environment for a worker."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=20))
    variables = {"GROUP_WORLD_SIZE": "1", "RANK": "0", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    for name, value in {**variables, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}.items():
        monkeypatch.setenv(name, value)
    return store


def port_of(monkeypatch, launcher, rank, attempt):
    for name, value in {"RANK": rank, "TORCHELASTIC_RESTART_COUNT": attempt, "MASTER_PORT": launcher.port}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    meet_anew()
    return int(os.environ["MASTER_PORT"]), os.environ["TORCHELASTIC_USE_AGENT_STORE"]


def test_all_processes_of_a_further_try_go_to_one_new_place(launcher, monkeypatch):
    first, rest = (port_of(monkeypatch, launcher, rank, 1) for rank in (0, 1))
    assert first == rest
    assert first[0] != launcher.port
    assert first[1] == "False", "or every process would expect the launcher there"
    assert port_of(monkeypatch, launcher, 0, 2)[0] != launcher.port


def test_the_first_try_and_runs_on_several_nodes_stay_with_the_launcher(launcher, monkeypatch):
    assert port_of(monkeypatch, launcher, 0, 0) == (launcher.port, "True")
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    assert port_of(monkeypatch, launcher, 0, 1) == (launcher.port, "True")

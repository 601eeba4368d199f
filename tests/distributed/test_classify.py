"""Classification on two processes computes what it computes on one, and every row is predicted once."""

import json
from pathlib import Path

import pytest

from tests.distributed.classify_cases import METHODS
from tests.distributed.processes import read_notes, run_processes
from tests.encoders import titles, write_encoder, write_titles

pytestmark = pytest.mark.distributed

NUM_TEST_ROWS = 7  # odd, and no multiple of what a process evaluates at once


def launch(strategy: str, num_processes: int, directory: Path) -> Path:
    write_encoder(directory / "base", dropout=0.0)
    write_titles(directory / "train.txt", titles(60))
    write_titles(directory / "test.txt", titles(NUM_TEST_ROWS, seed=1))
    flags = ["--config_file", f"launch/accelerate/{strategy}.yaml", "--num_processes", str(num_processes)]
    script = str(Path(__file__).parent / "classify_cases.py")
    command = ["accelerate", "launch", "--main_process_port", "0", *flags, script, str(directory)]
    run_processes(command, directory, num_processes)
    return directory


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return launch("cpu", 1, tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module", params=["ddp", "zero2"])
def together(request, tmp_path_factory):
    directory = launch(request.param, 2, tmp_path_factory.mktemp(request.param))
    assert [note["world_size"] for note in read_notes(directory)] == [2, 2]
    return directory


def values(run: Path, key: str) -> list[float]:
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [record[key] for record in records if key in record]


def test_losses_and_scores_are_those_of_one_process(alone, together):
    for method in METHODS:
        for key in ("loss", "eval_loss", "eval_accuracy"):
            found, expected = values(together / method, key), values(alone / method, key)
            assert found == pytest.approx(expected, rel=1e-3), (method, key)
            assert len(found) >= 2


def test_every_row_is_predicted_once_and_alike(alone, together):
    for method in METHODS:
        found, expected = (
            [json.loads(line) for line in (run / method / "predictions.jsonl").read_text().splitlines()]
            for run in (together, alone)
        )
        assert [record["row_id"] for record in found] == list(range(NUM_TEST_ROWS))
        for one, other in zip(found, expected, strict=True):
            assert one["probabilities"] == pytest.approx(other["probabilities"], abs=2e-3), method

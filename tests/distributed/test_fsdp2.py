"""P-Tuning v2 on a base that FSDP2 splits over two processes. See `fsdp2_cases.py` for what they run."""

import pytest

from tests.distributed.processes import ROOT, read_notes, run_processes

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    directory = tmp_path_factory.mktemp("fsdp2")
    command = ["torchrun", "--standalone", "--nproc_per_node", "2", str(ROOT / "tests/distributed/fsdp2_cases.py")]
    run_processes([*command, str(directory)], directory, 2)
    return read_notes(directory)


def test_all_stop_with_the_rows_and_the_cause_that_one_has_found(processes):
    first, second = (process["stop"] for process in processes)
    assert first.startswith("the loss of step 5 is nan (rows 11). All weights are finite")
    assert first == second


def test_there_are_two(processes):
    assert [process["num_processes"] for process in processes] == [2, 2]


@pytest.mark.parametrize("case", ["plain", "checkpointing"])
def test_split_model_trains_as_the_whole_one(case, processes):
    for process in processes:
        found = process[case]
        assert found["num_split"] == found["num_parameters"] > 0
        whole, split = found["losses"]
        assert split == pytest.approx(whole, rel=1e-5)  # sums of float32 in another order; 1e-7 was measured
        assert whole[-1] < whole[0]


@pytest.mark.parametrize("case", ["plain", "checkpointing"])
def test_split_model_answers_and_is_saved_as_the_whole_one(case, processes):
    for process in processes:
        whole, split = process[case]["looks"]
        assert (whole["synced"], split["synced"]) == (False, True)
        assert split["answers"] == whole["answers"]
        for row, expected in zip(split["table"], whole["table"], strict=True):
            assert row == pytest.approx(expected, abs=1e-4)
    first, second = (process[case]["looks"][1] for process in processes)
    assert first["digest"] == second["digest"]
    assert first["answers"] != second["answers"]


@pytest.mark.parametrize("case", ["plain", "checkpointing"])
def test_checkpoint(case, processes):
    assert all(process[case]["checkpoint_returns"] for process in processes)

"""Two processes, one of which is killed or asked to end: the others follow, and the next start goes on."""

import json
import os
import re
import subprocess
import time
from pathlib import Path

import pytest

from tests.faults.driver import arguments, result, write_rows

pytestmark = pytest.mark.faults

ROOT = Path(__file__).parents[2]


def launch(directory, where, how, *, max_restarts=0, wrapper=(), **changes):
    """Exit code, output and the seconds from the hit to the end."""
    files = {f"{name}_file": directory.parent / f"{name}.json" for name in ("train", "test")}
    options = {
        **files,
        "validation_file": files["test_file"],
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 1,
        **changes,
    }
    command = [*wrapper, "accelerate", "launch", "--config_file", "launch/accelerate/ddp.yaml", "--num_processes", "2"]
    command += ["--main_process_port", "0", "--max_restarts", str(max_restarts), "tests/faults/deaths.py", where, how]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"}
    env["HF_DATASETS_CACHE"] = str(directory.parent / "cache")
    done = subprocess.run(
        [*command, *arguments(directory, **options)],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    hit = re.search(r"hit at ([0-9.]+)", done.stdout)
    return done.returncode, done.stdout, time.time() - float(hit[1]) if hit else None


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("deaths")
    write_rows(directory)
    (directory / "whole").mkdir()
    code, output, _ = launch(directory / "whole", "step 0", "none")
    assert code == 0, output[-5000:]
    assert "destroy_process_group" not in output
    return directory / "whole"


def test_killed_asked_to_end_and_killed_again_it_ends_as_the_undisturbed_run(whole):
    directory = whole.parent / "hit"
    directory.mkdir()
    code, output, seconds = launch(directory, "step 5", "kill")
    assert code != 0
    assert seconds < 30, output[-3000:]
    end = output[output.index("rank 1 died") :]
    assert "step 5 of 8 done" in end, "the tail of its log"
    assert str(directory / "run" / "logs" / "rank-1.log") in end
    assert re.search(r"rank +: 1 ", end), "the launcher's summary"
    assert "SIGKILL" in end
    assert "Traceback" not in output[: output.index("rank 1 died")]

    code, output, _ = launch(directory, "evaluation", "usr1", wrapper=["bash", "launch/preemptible.sh"])
    assert code != 0
    assert "asked to end by SIGTERM" in output
    assert json.loads((directory / "run" / "preempted").read_text())["checkpoint"] == "checkpoint-6"

    code, output, _ = launch(directory, "step 6", "term")
    assert code != 0
    assert "asked to end by SIGTERM" in output
    assert "going on from" in output
    marker = json.loads((directory / "run" / "preempted").read_text())
    assert marker["checkpoint"] == "checkpoint-7", "asked within step 7, which is taken to its end"

    code, output, _ = launch(directory, "prediction", "kill", max_restarts=1)
    assert code == 0, output[-5000:]
    assert not (directory / "run" / "preempted").exists()
    assert "rank 1 died" in output
    assert "is finished" in output, "the training, when prediction was hit"
    assert result(directory) == result(whole)


def test_a_traceback_is_shown_instead_of_what_follows_from_it(whole):
    directory = whole.parent / "raised"
    directory.mkdir()
    code, output, _ = launch(directory, "step 3", "raise")
    assert code != 0
    assert output.count("RuntimeError: a defect of rank 1") >= 2, "as it happened, and in the report"
    assert "Connection closed" not in output

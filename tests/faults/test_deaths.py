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


def launch(directory, *hits, max_restarts=None, wrapper=(), **changes):
    """Exit code, output and the seconds from the last hit to the end; a further try of the launcher for every hit but
    the last."""
    max_restarts = len(hits) - 1 if max_restarts is None else max_restarts
    files = {f"{name}_file": directory.parent / f"{name}.json" for name in ("train", "test")}
    options = {
        **files,
        "validation_file": files["test_file"],
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 1,
        **changes,
    }
    command = [*wrapper, "accelerate", "launch", "--config_file", "launch/accelerate/ddp.yaml", "--num_processes", "2"]
    command += ["--main_process_port", "0", "--max_restarts", str(max_restarts)]
    command += ["tests/faults/deaths.py", ", ".join(hits)]
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
    hit_at = re.findall(r"hit at ([0-9.]+)", done.stdout)
    return done.returncode, done.stdout, time.time() - float(hit_at[-1]) if hit_at else None


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("deaths")
    write_rows(directory)
    (directory / "whole").mkdir()
    code, output, _ = launch(directory / "whole", "no hit")
    assert code == 0, output[-5000:]
    assert "destroy_process_group" not in output
    return directory / "whole"


def test_killed_asked_to_end_and_killed_again_it_ends_as_the_undisturbed_run(whole):
    directory = whole.parent / "hit"
    directory.mkdir()
    code, output, seconds = launch(directory, "tokenisation kill", "tokenisation term", "step 5 kill")
    assert code != 0
    assert seconds < 30, output[-3000:]
    assert output.count("rank 1 died") == 2, output[-5000:]
    assert re.search(r"rank 1 died .* before it kept a log", output)
    assert output.count("asked to end by SIGTERM") == 1
    last = output.rindex("rank 1 died")
    end = output[last:]
    assert "step 5 of 8 done" in end, "the tail of its log"
    assert str(directory / "run" / "logs" / "rank-1.log") in end
    assert re.search(r"rank +: 1 ", end), "the launcher's summary"
    assert "SIGKILL" in end
    assert "Traceback" not in output[:last]

    code, output, _ = launch(directory, "evaluation usr1", wrapper=["bash", "launch/preemptible.sh"])
    assert code != 0
    assert "asked to end by SIGTERM" in output
    assert json.loads((directory / "run" / "preempted").read_text())["checkpoint"] == "checkpoint-6"

    asked = ("step 6 term", "final-evaluation term", "prediction term")
    code, output, _ = launch(directory, *asked, "prediction kill", max_restarts=4)
    assert code == 0, output[-5000:]
    assert "Traceback" not in output
    markers = [json.loads(marker) for marker in re.findall("marker: (.*)", output)]
    assert [(m["signal"], m["checkpoint"]) for m in markers] == [
        ("SIGTERM", "checkpoint-6"),
        ("SIGTERM", "checkpoint-7"),  # asked within step 7, which is taken to its end
        ("SIGTERM", None),
        ("SIGTERM", None),
    ]
    assert not (directory / "run" / "preempted").exists()
    assert "going on from" in output
    assert output.count("rank 1 died") == 1
    assert "is finished" in output, "the training, when prediction was hit"
    assert result(directory) == result(whole)


def test_a_traceback_is_shown_instead_of_what_follows_from_it(whole):
    directory = whole.parent / "raised"
    directory.mkdir()
    code, output, _ = launch(directory, "step 3 raise")
    assert code != 0
    assert output.count("RuntimeError: a defect of rank 1") >= 2, "as it happened, and in the report"
    assert "Connection closed" not in output

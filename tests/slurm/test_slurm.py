"""Jobs on a real two-node Slurm: what was trained over both nodes, and after every kind of interruption, is the same.

Locally, as root: apt-get install slurm-wlm munge, then python -m pytest -m slurm
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from softlaunch.errors import LaunchError
from softlaunch.launching.job import make_job
from softlaunch.launching.profile import Profile
from softlaunch.launching.settings import read_settings
from softlaunch.launching.strategy import Machines
from softlaunch.launching.submit import Submitted, submit, wait
from tests.slurm.cluster import Cluster, why_not

pytestmark = pytest.mark.slurm

ROOT = Path(__file__).parents[2]
NUM_STEPS = 6
ROWS_PER_UPDATE = 4
# Over processes the same numbers are added in another order
TOLERANCE = {"rtol": 0, "atol": 1e-3}
JOB_TIMEOUT_S = 150
# Two launchers of one job share this machine, and each would find the port taken by the other
ACCELERATE = """\
#!{python}
import runpy, sys
sys.argv = ["accelerate", "launch", "--machine_rank", "1", *sys.argv[2:]]
runpy.run_module("accelerate.commands.accelerate_cli", run_name="__main__")
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    missing = why_not()
    if missing:
        pytest.skip(missing)
    with Cluster(tmp_path_factory.mktemp("slurm")) as running:
        yield running


@pytest.fixture(scope="module")
def folder(cluster, tmp_path_factory):
    """A project's folder as a user has it: links to the project's, and a run of his own."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("recipes", "launch", "ds_configs"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "tests" / "slurm" / "recipe.py", folder)
    programs = folder / "bin"
    programs.mkdir()
    (programs / "accelerate").write_text(ACCELERATE.format(python=sys.executable))
    (programs / "accelerate").chmod(0o755)
    demo = json.loads((ROOT / "recipes" / "args" / "demo.json").read_text(encoding="utf-8"))
    changes = {
        "output_dir": "output/run",
        "max_steps": NUM_STEPS,
        "max_train_samples": NUM_STEPS * ROWS_PER_UPDATE,
        "per_device_train_batch_size": ROWS_PER_UPDATE,
        "prefix_dropout": 0.0,
        "logging_steps": 1,
        "save_steps": 1,
        "save_total_limit": 2,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        **dict.fromkeys(("restart", "do_eval", "do_predict", "compare_with_base", "predict_with_generate"), False),
    }
    (folder / "run.json").write_text(json.dumps(demo | changes))
    before = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


def profile(**changes):
    environment = {
        "PATH": f"{Path.cwd()}/bin:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT / "src"),
        "SOFTLAUNCH_TEST_ROOT": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": f"{Path.cwd()}/cache",
        "DS_ACCELERATOR": "cpu",
    }
    facts = {"gpu_request": "", "time_limit": "00:10:00", "environment": environment, "save_time_s": 30}
    return Profile(**(facts | changes))


def start(*words, nodes=1, launch_file="cpu", arrays=(), **facts) -> tuple[Submitted, Path]:
    """Submits the run, and where it writes."""
    machines = Machines(nodes, 0)
    file = f"launch/accelerate/{launch_file}.yaml"
    job = make_job("recipe.py", "run.json", list(words), machines, file, profile(**facts), list(arrays))
    output_dir = read_settings(["run.json", *words]).output_dir
    return submit(job), Path(output_dir)


def finish(submitted):
    end = time.monotonic() + JOB_TIMEOUT_S

    def sleep(_):
        now_at_once(submitted)
        if time.monotonic() > end:
            queue = subprocess.run(["scontrol", "show", "job"], capture_output=True, text=True, check=False).stdout
            pytest.fail(f"{submitted.job_id} does not end:\n{queue}\n{submitted.logs[0].read_text()[-3000:]}")
        time.sleep(0.5)

    wait(submitted, sleep)
    return submitted.logs[0].read_text()


def now_at_once(submitted):
    """Slurm lets a job that was requeued wait for two minutes."""
    state = subprocess.run(
        ["squeue", "-h", "-j", submitted.job_id, "-o", "%T %r"], capture_output=True, text=True, check=False
    ).stdout
    if state.startswith("PENDING BeginTime"):
        subprocess.run(
            ["scontrol", "update", f"JobId={submitted.job_id}", "StartTime=now"], capture_output=True, check=False
        )


def table(output_dir, name="adapter"):
    return load_file(output_dir / name / "adapter_model.safetensors")["prefix_encoder.embedding.weight"]


def steps(output_dir):
    file = output_dir / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [record["step"] for record in map(json.loads, lines) if "loss" in record]


def wait_for_step(output_dir, step):
    end = time.monotonic() + JOB_TIMEOUT_S
    while not steps(output_dir) or steps(output_dir)[-1] < step:
        assert time.monotonic() < end, "the job does not get to its steps"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def alone(folder):
    """The undisturbed run in one process."""
    submitted, output_dir = start("--output_dir", "output/alone")
    finish(submitted)
    return table(output_dir)


@pytest.mark.parametrize("launch_file", ["zero2", "zero3"])
def test_two_nodes_train_as_one_process(launch_file, alone):
    batch = ROWS_PER_UPDATE // 2
    submitted, output_dir = start(
        *("--output_dir", f"output/{launch_file}", "--per_device_train_batch_size", str(batch)),
        nodes=2,
        launch_file=launch_file,
    )
    log = finish(submitted)
    assert json.loads((output_dir / "record.json").read_text())["world_size"] == 2
    torch.testing.assert_close(table(output_dir), alone, **TOLERANCE)
    assert steps(output_dir) == list(range(1, NUM_STEPS + 1))
    assert log.count("***** train metrics *****") == 1, "the other node speaks too"

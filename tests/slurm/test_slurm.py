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
from softlaunch.launching.status import read_status
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
# As pip writes it where the path of Python may have spaces
ACCELERATE = """\
#!/bin/sh
'''exec' "{python}" "$0" "$@"
' '''
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
        "probe_prompts": [],
        **dict.fromkeys(("restart", "do_eval", "do_predict", "compare_with_base", "predict_with_generate"), False),
    }
    (folder / "run.json").write_text(json.dumps(demo | changes))
    before = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


def profile(slow_step_s=None, **changes):
    environment = {
        **({} if slow_step_s is None else {"SLOW_STEP_S": str(slow_step_s)}),
        "PATH": f"{Path.cwd()}/bin:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT / "src"),
        "PROJECT_ROOT": str(ROOT),
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


def slurm(*command):
    subprocess.run(command, check=True, capture_output=True, timeout=30)


@pytest.fixture(scope="module")
def jobs(folder):
    """Jobs of one process each, which share the two nodes as Slurm sees fit."""
    return {
        "limit": start("--output_dir", "output/limit", slow_step_s=12, time_limit="00:01:00", save_time_s=0),
        "requeue": start("--output_dir", "output/requeue", slow_step_s=2),
        "alone": start("--output_dir", "output/alone"),
        "array": start("--output_dir", "output/array", arrays=["learning_rate=1e-3,1e-2"]),
        "fail": start("--output_dir", "output/fail", "--train_file", "nowhere.json"),
    }


@pytest.fixture(scope="module")
def alone(jobs):
    """What the undisturbed run in one process learns."""
    submitted, output_dir = jobs["alone"]
    finish(submitted)
    return table(output_dir)


def test_scontrol_requeue(jobs):
    submitted, output_dir = jobs["requeue"]
    wait_for_step(output_dir, 2)
    slurm("scontrol", "requeue", submitted.job_id)
    finish(submitted)


def test_cancelled_jobs_stay_cancelled(jobs):
    submitted, output_dir = start("--output_dir", "output/cancel", slow_step_s=2)
    wait_for_step(output_dir, 1)
    slurm("scancel", submitted.job_id)
    with pytest.raises(LaunchError, match="ended as CANCELLED"):
        finish(submitted)
    assert (output_dir / "preempted").exists(), "the run was ended in good order"
    assert "requeue 1" not in submitted.logs[0].read_text()


def test_array_of_two(jobs):
    submitted, output_dir = jobs["array"]
    finish(submitted)
    small, large = (table(output_dir / f"learning_rate={rate}") for rate in ("1e-3", "1e-2"))
    assert not torch.equal(small, large)
    assert [log.is_file() for log in submitted.logs] == [True, True]


def test_a_failed_job_tells_the_end_of_its_log(jobs):
    with pytest.raises(LaunchError, match=r"ended as FAILED \(exit code 2:0\)(?s:.*)nowhere\.json"):
        finish(jobs["fail"][0])


def test_time_limit(jobs):
    submitted, _ = jobs["limit"]
    assert "requeue 1 of at most" in finish(submitted)


@pytest.mark.parametrize("how", ["requeue", "limit"])
def test_interrupted_runs_end_with_the_same_weights(how, jobs, alone):
    submitted, output_dir = jobs[how]
    assert "going on from" in submitted.logs[0].read_text(), "begun anew, it would end with the same weights too"
    assert read_status(output_dir).restarts >= 1
    assert steps(output_dir)[-1] == NUM_STEPS
    assert torch.equal(table(output_dir), alone)


@pytest.mark.parametrize("launch_file", ["zero2", "zero3"])
def test_two_nodes_train_as_one_process(launch_file, alone):
    submitted, output_dir = on_two_nodes(launch_file, launch_file)
    log = finish(submitted)
    assert json.loads((output_dir / "record.json").read_text())["world_size"] == 2
    torch.testing.assert_close(table(output_dir), alone, **TOLERANCE)
    assert steps(output_dir) == list(range(1, NUM_STEPS + 1))
    assert log.count(f"step {NUM_STEPS}/{NUM_STEPS}") == 1, "the other node speaks too"


def test_a_signal_to_two_nodes(alone):
    submitted, output_dir = on_two_nodes("signal", "ddp", slow_step_s=2)
    wait_for_step(output_dir, 2)
    slurm("scancel", "--signal=USR1", submitted.job_id)
    log = finish(submitted)
    assert "requeue 1 of at most" in log
    assert "going on from" in log
    assert read_status(output_dir).restarts == 1
    torch.testing.assert_close(table(output_dir), alone, **TOLERANCE)


def on_two_nodes(name, launch_file, **facts):
    words = ("--output_dir", f"output/{name}", "--per_device_train_batch_size", str(ROWS_PER_UPDATE // 2))
    return start(*words, nodes=2, launch_file=launch_file, **facts)

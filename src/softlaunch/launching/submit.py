"""Handing a job to Slurm, and waiting for its end."""

import re
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from softlaunch.errors import LaunchError
from softlaunch.launching.job import Job
from softlaunch.launching.slurm import log_file, render_sbatch

_TAIL_LINES = 20
_POLL_S = 5.0
_ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL"}


@dataclass(frozen=True)
class Submitted:
    """What Slurm made of a job; `logs` one per task."""

    job_id: str
    logs: tuple[Path, ...]


def has_slurm() -> bool:
    """Whether jobs can be submitted from this machine."""
    if shutil.which("sbatch") is None or shutil.which("scontrol") is None:
        return False
    return subprocess.run(["scontrol", "ping"], capture_output=True, check=False).returncode == 0


def test_script(script: str) -> str:
    """What `sbatch --test-only` says of it; raises LaunchError when Slurm would refuse the job."""
    return _run(["sbatch", "--test-only"], script)


def submit(job: Job) -> Submitted:
    """Submits the job; raises LaunchError with Slurm's own words when it refuses."""
    script = render_sbatch(job)
    test_script(script)
    Path(job.profile.log_dir).mkdir(parents=True, exist_ok=True)
    job_id = _run(["sbatch", "--parsable"], script).split(";")[0].strip()
    log = log_file(job, job_id)
    return Submitted(job_id, tuple(Path(log.replace("%a", str(task))) for task in range(len(job.tasks))))


def wait(submitted: Submitted, sleep: Callable[[float], None] = time.sleep) -> None:
    """Returns when all tasks have done their work, requeues included.

    Raises LaunchError when one has failed, with the end of its log.
    """
    while True:
        tasks = _tasks(submitted.job_id)
        failed = next((task for task in tasks if task.state in _ENDED - {"COMPLETED"}), None)
        if failed is not None:
            raise LaunchError(
                "job {job} ended as {state} (exit code {code}). The end of {log}:\n{tail}",
                job=submitted.job_id,
                state=failed.state,
                code=failed.exit_code,
                log=submitted.logs[failed.number],
                tail=tail(submitted.logs[failed.number]),
            )
        if tasks and all(task.state == "COMPLETED" for task in tasks):
            return
        sleep(_POLL_S)


def tail(log: Path) -> str:
    """The last lines of a log; says so when there is none."""
    if not log.is_file():
        return f"({log.name}: -)"
    lines = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines()
    return "\n".join(f"  {line}" for line in lines[-_TAIL_LINES:])


@dataclass(frozen=True)
class _TaskState:
    number: int
    state: str
    exit_code: str


def _tasks(job_id: str) -> list[_TaskState]:
    """The tasks of a job as Slurm knows them; a pending array is one record for all of its tasks."""
    tasks = []
    for record in _run(["scontrol", "-o", "show", "job", job_id]).splitlines():
        fields = dict(re.findall(r"(\w+)=(\S*)", record))
        number = fields.get("ArrayTaskId", "0")
        tasks.append(_TaskState(int(number) if number.isdigit() else 0, fields["JobState"], fields["ExitCode"]))
    return tasks


def _run(command: list[str], text: str | None = None) -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LaunchError(
            "{command} refuses: {reason}", command=" ".join(command[:2]), reason=done.stderr.strip() or done.returncode
        )
    return done.stdout or done.stderr

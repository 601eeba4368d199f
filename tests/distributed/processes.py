"""Starting processes, and what they note down."""

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 600


def run_processes(command: list[str], directory: Path, num_processes: int) -> str:
    """All output of `command`, whose processes write `rank-N.json` into `directory` as their last deed.

    They must all have done so. The exit code would say less: gloo fails once in a while when everything is torn down.
    """
    settings = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(directory / "cache")}
    log = directory / "log.txt"
    with log.open("w") as file:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **settings, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            process.wait(TIMEOUT_S)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    output = log.read_text()
    assert len(read_notes(directory)) == num_processes, output[-5000:]
    return output


def read_notes(directory: Path) -> list[dict[str, Any]]:
    """What each process noted, by rank."""
    return [json.loads(file.read_text()) for file in sorted(directory.glob("rank-*.json"))]

"""Directories that are complete or absent."""

import signal
import subprocess
import sys

ENDLESS = """
import sys, time
from pathlib import Path
from softlaunch.new_directory import new_directory
with new_directory(Path(sys.argv[1])) as directory:
    (directory / "weights").write_bytes(bytes(1000))
    print("written", flush=True)
    time.sleep(60)
"""


def test_asked_to_end_it_leaves_nothing(tmp_path):
    command = [sys.executable, "-c", ENDLESS, str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "written\n"
        process.terminate()
        assert process.wait(30) == 128 + signal.SIGTERM
    assert not list(tmp_path.iterdir())

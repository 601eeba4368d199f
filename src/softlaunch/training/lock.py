"""One run at a time in an output directory."""

import json
import os
import platform
import sys
from pathlib import Path
from typing import IO

from softlaunch.errors import LaunchError

LOCK_FILE = ".lock"
_held: dict[Path, IO[str]] = {}


def take(output_dir: Path) -> None:
    """Hold `output_dir` until this process ends, however it ends. Raises LaunchError when another one holds it.

    A record lock, not `flock`: worker processes do not inherit it, so none that outlives the run keeps it.
    """
    path = (output_dir / LOCK_FILE).resolve()
    if path in _held or sys.platform == "win32":
        return
    import fcntl

    file = path.open("a+", encoding="utf-8")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        owner = file.read().strip() or "?"
        file.close()
        raise LaunchError(
            "{output_dir} is in use by another run: {owner}. Wait for its end, end it, or name another output_dir",
            output_dir=output_dir,
            owner=owner,
        ) from None
    file.truncate(0)
    file.write(json.dumps({"process": os.getpid(), "host": platform.node()}))
    file.flush()
    _held[path] = file

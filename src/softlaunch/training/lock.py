"""One run at a time in an output directory."""

import errno
import json
import logging
import os
import platform
import sys
from pathlib import Path
from typing import IO

from softlaunch.errors import LaunchError
from softlaunch.messages import say

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"
_HELD = (errno.EAGAIN, errno.EACCES)  # a system gives the one or the other
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # Lustre, NFS or FUSE without them
_held: dict[Path, IO[str]] = {}


def take(output_dir: Path) -> None:
    """Hold `output_dir` until this process ends, however it ends. Raises LaunchError when another one holds it.

    A record lock, not `flock`: worker processes do not inherit it, so none that outlives the run keeps it. On a file
    system without locks it warns and goes on.
    """
    path = (output_dir / LOCK_FILE).resolve()
    if path in _held or sys.platform == "win32":
        return
    import fcntl

    file = path.open("a+", encoding="utf-8")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            _held[path] = file
            logger.warning(
                say(
                    "the file system of {output_dir} has no locks: see to it that no other run writes there",
                    output_dir=output_dir,
                )
            )
            return
        if error.errno not in _HELD:
            raise
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

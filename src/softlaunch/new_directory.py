"""Directories that are complete or absent: written under another name beside their place and moved there at the end."""

import errno
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from softlaunch.errors import CheckpointError
from softlaunch.files import flush, flush_tree

_GIB = 1024**3
# safetensors wraps what the system says about a full disk into an error of its own
_FULL_DISK = ("no space left", "quota exceeded")


@contextmanager
def new_directory(target: Path, *, num_bytes: int = 0) -> Iterator[Path]:
    """Yields an empty directory that becomes `target` when the block ends well; otherwise nothing of it is left.

    `num_bytes`: what will be written, as far as it is known.
    Raises CheckpointError when `target` exists, when its place cannot be written, and when the disk is or gets full.
    """
    require_absent(target)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(target.parent).free
        if num_bytes > free:
            raise CheckpointError(
                "{path}: the disk has {free:.2f} GiB left, {needed:.2f} GiB are needed; make room, or name a directory "
                "on another disk. Nothing was written.",
                path=target,
                free=free / _GIB,
                needed=num_bytes / _GIB,
            )
        with _leaving_on_sigterm():
            temporary.mkdir()
            yield temporary
            flush_tree(temporary)
        temporary.rename(target)
        flush(target.parent)
    except CheckpointError:
        raise
    except Exception as error:
        if isinstance(error, OSError) or any(words in str(error).lower() for words in _FULL_DISK):
            raise CheckpointError(
                "{path} cannot be written: {reason}. Nothing of it was left behind.", path=target, reason=_reason(error)
            ) from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _leaving_on_sigterm() -> Iterator[None]:
    """Inside, SIGTERM ends the program through all `finally`, where it would be killed on the spot.

    The exit code is what a shell reports for a process that the signal ended.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def require_absent(target: Path) -> None:
    """Raises CheckpointError when there is something at `target` already."""
    if target.exists():
        raise CheckpointError("{path} exists already; name a directory that does not", path=target)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return os.strerror(errno.ENOSPC)

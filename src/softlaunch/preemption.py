"""Ending in good order when the scheduler asks for it, by SIGTERM or SIGUSR1.

From `listen` on, a signal ends the program at once, with a marker file in the run's directory and exit code 143.
Inside `holding` it is only noted: there the code calls `stop_if_agreed` at moments at which every process can stop, and
has put its work on disk by then. A scheduler may signal one process or all: they agree before any of them leaves.
"""

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NoReturn

import torch

from softlaunch import lifeline
from softlaunch.collective import largest, several
from softlaunch.messages import say
from softlaunch.run_directory import MARKER_FILE

logger = logging.getLogger(__name__)

EXIT_CODE = 143  # what a shell reports for a process that SIGTERM ended
_SIGNALS = ("SIGTERM", "SIGUSR1")
_STORE_KEY = "softlaunch/preempted"


class Preempted(SystemExit):
    """The run was asked to end. It is no Exception: nothing that tries again or tells errors apart may catch it."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


class _State:
    def __init__(self) -> None:
        self.owner: int | None = None  # the process that listens; its children do not
        self.signal: str | None = None  # what this process was sent
        self.num_holds = 0
        self.directory: Path | None = None  # where the marker goes; None on all processes but the first
        self.in_store = False


_state = _State()


def listen(output_dir: Path, *, is_first: bool) -> None:
    """From now on SIGTERM and SIGUSR1 end the run as described above; the first process writes the marker."""
    if threading.current_thread() is not threading.main_thread():
        return  # only a program's main thread may handle signals
    _state.__init__()  # type: ignore[misc]  # a program may run one after the other
    _state.owner, _state.directory = os.getpid(), output_dir if is_first else None
    for name in _SIGNALS:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _on_signal)


@contextmanager
def holding() -> Iterator[None]:
    """Inside, a signal is noted and acted upon by `stop_if_agreed`; at the latest when the outermost one ends."""
    _state.num_holds += 1
    try:
        yield
    finally:
        _state.num_holds -= 1
    if _state.signal and not _state.num_holds:
        leave()


def agreed() -> bool:
    """Whether any process was asked to end; all processes call it together."""
    number = largest(signal.Signals[_state.signal] if _state.signal else 0)
    if number:
        _state.signal = signal.Signals(number).name  # what it was, though it was sent to another process
    return number != 0


def stop_if_agreed() -> None:
    """Raise Preempted on all processes when any of them was asked to end; all processes call it together."""
    if agreed():
        leave()


def asked_anywhere() -> bool:
    """Whether any process was asked to end, as far as this one knows; each process calls it whenever it likes.

    The processes tell one another through the store that they found each other with. It says nothing about when the
    others stop: `stop_if_agreed` has to follow.
    """
    if not several():
        return _state.signal is not None
    store = torch.distributed.distributed_c10d._get_default_store()
    if _state.signal and not _state.in_store:
        store.set(_STORE_KEY, _state.signal)
        _state.in_store = True
    return _state.in_store or store.check([_STORE_KEY])


def leave(checkpoint: str | None = None) -> NoReturn:
    """Write the marker, with the name of the checkpoint that was saved for this end, and raise Preempted."""
    lifeline.asked_to_end()
    if _state.directory is not None:
        logger.warning(say("asked to end by {signal}: start the run again to go on", signal=_state.signal or "SIGTERM"))
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        marker = {"signal": _state.signal or "SIGTERM", "time": now, "checkpoint": checkpoint}
        try:
            _state.directory.mkdir(parents=True, exist_ok=True)
            (_state.directory / MARKER_FILE).write_text(json.dumps(marker) + "\n", encoding="utf-8")
        except OSError as error:
            logger.error(say("{file} cannot be written: {error}", file=_state.directory / MARKER_FILE, error=error))
    raise Preempted


def _on_signal(number: int, _: Any) -> None:
    if os.getpid() != _state.owner:
        _end_child(number)
        return
    if _state.signal is None:
        if not _state.num_holds and lifeline.others_failed():
            raise SystemExit(lifeline.EXIT_CODE)
        _state.signal = signal.Signals(number).name
        if not _state.num_holds:
            leave()


def _end_child(number: int) -> None:
    """In a worker process: a data loader's, which schedulers signal as well, has to serve until the run has stopped."""
    data = sys.modules.get("torch.utils.data")
    if data is None or data.get_worker_info() is None:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

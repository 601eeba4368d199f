"""What the processes of a run know of one another's end, so that none waits for one that is gone.

Every process holds a connection to the first and says farewell before it ends as it should. When one breaks without
that (kill -9, a crash, a lost node), the others end within seconds, out of collectives that would wait for minutes, and
one of them says who died and shows the end of its log: `logs/rank-N.log` in the run's directory, or, if it left one,
its traceback. A connection is used, not heartbeats: a process that is busy for long is never taken for a dead one.
"""

import io
import os
import platform
import secrets
import selectors
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TextIO, cast

from softlaunch.messages import say

EXIT_CODE = 1
_GRACE_S = 3.0  # for the launcher to see the first death before those that follow from it
_CONNECT_S = 60.0
_HEARING_S = 0.3
_NUM_TAIL_LINES = 20
_FAREWELL, _FAILED, _ASKED = b"bye\n", b"failed\n", b"asked\n"
# A host that vanishes sends nothing more: the kernel asks after 10 s, four times
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 3, "TCP_KEEPCNT": 4}

_current: "Lifeline | None" = None


def rank_log(output_dir: Path, rank: int) -> Path:
    """Where a process of several notes what it does."""
    return output_dir / "logs" / f"rank-{rank}.log"


def connect(rank: int, num_processes: int, share: Callable[[list], None]) -> None:
    """Start watching; all processes call it. `share` puts the first process's list in the place of everybody's."""
    global _current
    if _current is None:
        _current = Lifeline(rank)
        _current.start(num_processes, share)
        os.register_at_fork(after_in_child=_current.forget)


def open_log(output_dir: Path) -> None:
    """From now on the notes of this process are in the run's directory, those that were made before too."""
    if _current is not None:
        _current.open_log(output_dir)


def note(text: str) -> None:
    """Add a line to this process's log, for the case that it dies; nothing in a run of one process."""
    if _current is not None:
        _current.note(text)


def farewell() -> None:
    """The last word of a process that has done its work."""
    if _current is not None:
        _current.say(_FAREWELL)


def asked_to_end() -> None:
    """The last word of a process that stops because it was asked to."""
    if _current is not None:
        _current.say(_ASKED)


def failed() -> None:
    """The last word of a process that ends with a message of its own: the others will be ended by the launcher."""
    if _current is not None:
        _current.say(_FAILED)


def is_consequence(error: BaseException) -> bool:
    """Whether an unexpected error follows from another process's end; then that one need not be shown."""
    if _current is None:
        return False
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # the launcher's, when it has seen the death
    if not _current.hears_of_end(_GRACE_S):
        _current.note("".join(traceback.format_exception(error)).rstrip())
        return False
    if not _current.asked:
        time.sleep(2 * _GRACE_S)  # this process is ended from where it was heard
    return True


def others_were_asked() -> bool:
    """Whether another process has left because it was asked to end."""
    return _current is not None and _current.asked


def others_failed() -> bool:
    """Whether another process has died or failed: a signal that follows is the launcher's, not the scheduler's."""
    if _current is None or not _current.hears_of_end(_HEARING_S) or _current.asked:
        return False
    if _current.ends:
        time.sleep(2 * _GRACE_S)  # this process is ended from where it was heard, once it is said who died
    return True


class Lifeline:
    """The connections of one process and the thread that watches them."""

    def __init__(self, rank: int):
        self.rank = rank
        self.output_dir: Path | None = None
        self.peers: dict[socket.socket, tuple[int, str]] = {}  # connection → rank, and where it runs
        self._end, self._over = threading.Event(), False
        self.asked = False  # what ended was asked to
        self.ends = False  # it has died, and this process is about to be ended for it
        self._log: TextIO = io.StringIO()
        self.note(f"process {os.getpid()} on {platform.node()}")

    def open_log(self, output_dir: Path) -> None:
        """Move the log to its place."""
        earlier, self.output_dir = self._log, output_dir
        path = rank_log(output_dir, self.rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._log = path.open("w", encoding="utf-8")
        self._log.write(earlier.getvalue() if isinstance(earlier, io.StringIO) else "")
        self._log.flush()

    def note(self, text: str) -> None:
        """Add a line with the time to the log."""
        with suppress(OSError, ValueError):  # a full disk, a closed file: the run matters more
            self._log.write(f"{time.strftime('%H:%M:%S')} {text}\n")
            self._log.flush()

    def start(self, num_processes: int, share: Callable[[list], None]) -> None:
        """Connect all processes, and watch the connections in a thread of their own."""
        where = f"process {os.getpid()} on {platform.node()}"
        if self.rank == 0:
            with socket.create_server(("", 0), backlog=num_processes) as server:
                shared = [server.getsockname()[1], secrets.token_hex(16), where]
                share(shared)
                server.settimeout(_CONNECT_S)
                while len(self.peers) < num_processes - 1:
                    self._accept(server, shared[1])
        else:
            shared = [None, None, None]
            share(shared)
            connection = socket.create_connection((os.environ.get("MASTER_ADDR", "127.0.0.1"), shared[0]), _CONNECT_S)
            connection.sendall(f"{shared[1]} {self.rank} {where}\n".encode())
            self.peers[_kept_alive(connection)] = (0, shared[2])
        threading.Thread(target=self._watch, name="lifeline", daemon=True).start()

    def _accept(self, server: socket.socket, token: str) -> None:
        connection, _ = server.accept()
        connection.settimeout(_CONNECT_S)
        with connection.makefile("r", encoding="utf-8", errors="replace") as file:
            word, _, rest = file.readline(500).rstrip("\n").partition(" ")
        rank, _, where = rest.partition(" ")
        if secrets.compare_digest(word.encode(), token.encode()) and rank.isdecimal():
            self.peers[_kept_alive(connection)] = (int(rank), where)
        else:
            connection.close()  # somebody else, who knocked at our port

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for connection in self.peers:
                selector.register(connection, selectors.EVENT_READ)
            while selector.get_map():
                for key, _ in selector.select():
                    connection = cast(socket.socket, key.fileobj)
                    try:
                        word = connection.recv(4096)
                    except OSError:
                        word = b""
                    if self._over or word in (_FAREWELL, _FAILED, _ASKED):
                        selector.unregister(connection)
                        if word == _ASKED:
                            self._on_asked(connection)
                        elif word == _FAILED:
                            self._end.set()
                    else:  # nothing: it broke off; else word of another's death
                        self._on_death(connection, is_told=bool(word))

    def _on_asked(self, connection: socket.socket) -> None:
        self.asked = True
        self._end.set()
        if self.rank == 0 and not self._over:
            for peer in self.peers:
                if peer is not connection:
                    _send(peer, _ASKED)

    def _on_death(self, connection: socket.socket, *, is_told: bool) -> None:
        self.ends = True
        self._end.set()
        time.sleep(0.2)  # for the last lines of the dead one's log, on another node's disk perhaps
        rank, where = self.peers[connection]
        if self.rank == 0:
            for peer in self.peers:
                if peer is not connection:
                    _send(peer, f"{rank}\n".encode())
        if not is_told and self.rank == min(r for r in (0, 1) if r != rank):
            sys.stderr.write(self._report(rank, where))
            sys.stderr.flush()
        time.sleep(_GRACE_S)
        os._exit(EXIT_CODE)

    def _report(self, rank: int, where: str) -> str:
        if self.output_dir is None:
            return say("error: rank {rank} died ({where}) before it kept a log", rank=rank, where=where) + "\n"
        path = rank_log(self.output_dir, rank)
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[-_NUM_TAIL_LINES:]
        except OSError as error:
            lines = [str(error)]
        message = say(
            "error: rank {rank} died ({where}). The end of its log, {path}:", rank=rank, where=where, path=path
        )
        return "\n".join([message, *(f"    {line}" for line in lines)]) + "\n"

    def hears_of_end(self, timeout_s: float) -> bool:
        """Whether another process died, failed or was asked to end, before now or within this time."""
        return self._end.wait(timeout_s)

    def say(self, word: bytes) -> None:
        """From now on this process may end without being taken for dead; what it says after that is not heard."""
        if not self._over:
            self._over = True
            for peer in self.peers:
                _send(peer, word)

    def forget(self) -> None:
        """In a worker process: its copy of a connection would keep it open when this process dies."""
        self._over = True
        for peer in self.peers:
            peer.close()


def _kept_alive(connection: socket.socket) -> socket.socket:
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return connection


def _send(connection: socket.socket, word: bytes) -> None:
    with suppress(OSError):
        connection.sendall(word)

"""Large files of JSON lines, checked by several processes: each takes a stretch of whole lines."""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

from softlaunch.data.sources import Record, json_record

MIN_BYTES = 64 << 20  # below that, starting processes gains nothing
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Stretch:
    """The lines of `path` from byte `begin` up to byte `end`."""

    path: Path
    codec: str
    begin: int
    end: int

    def records(self) -> Iterator[Record]:
        """As `sources.records`, with lines counted from 1 at the beginning of the stretch."""
        with self.path.open("rb") as file:
            file.seek(self.begin)
            number = 0
            while file.tell() < self.end and (line := file.readline()):
                number += 1
                text = line.decode(self.codec)
                if not text.isspace():
                    yield number, json_record(text)

    def num_lines(self) -> int:
        """How many lines it has."""
        with self.path.open("rb") as file:
            file.seek(self.begin)
            left, lines = self.end - self.begin, 0
            while left > 0 and (block := file.read(min(left, 1 << 20))):
                left, lines = left - len(block), lines + block.count(b"\n")
        return lines


def available_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def can_split(path: Path, codec: str) -> bool:
    """Whether it is worth it, and lines can be told in the bytes: a newline is one byte in this encoding."""
    return path.is_file() and path.stat().st_size >= MIN_BYTES and "\n".encode(codec.removesuffix("-sig")) == b"\n"


def split(path: Path, codec: str, number: int) -> list[Stretch]:
    """`number` stretches of about the same size, or fewer."""
    size = path.stat().st_size
    ends: list[int] = []
    with path.open("rb") as file:
        for part in range(1, number):
            file.seek(max(part * size // number, ends[-1] if ends else 0))
            file.readline()
            ends.append(file.tell())
    borders = sorted({0, *ends, size})
    return [Stretch(path, codec, begin, end) for begin, end in pairwise(borders)]


def run(work: Callable[[int, Stretch], _Result], stretches: list[Stretch]) -> list[_Result]:
    """`work(index, stretch)` of each in a process of its own; forked, since importing anew takes seconds."""
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
    with ProcessPoolExecutor(len(stretches), mp_context=multiprocessing.get_context(method)) as pool:
        return list(pool.map(partial(_call, work), enumerate(stretches)))


def _call(work: Callable[[int, Stretch], _Result], item: tuple[int, Stretch]) -> _Result:
    return work(*item)

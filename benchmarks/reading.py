"""How fast a file of JSON lines is read and checked, on one core and on all, and the memory that it takes.

    python benchmarks/reading.py [--mib 1024]

The rows are of ADGEN's kind (a prompt of attributes, a description of some sentences); each measurement is a process
of its own that reads the file as a run does: its hash, the check of every row, and the table that the run then maps.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from softlaunch.data.parallel import available_cores

CHARACTERS = "的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会可主发年动同工也能下过子说"
MIB = 1 << 20
READ = """
import sys
from softlaunch.data.read import read_rows
rows = read_rows(sys.argv[1], prompt_column="content", response_column="summary", cache_dir=sys.argv[2],
                 num_workers=int(sys.argv[3]))
print(len(rows))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=1024, help="size of the file (%(default)s)")
    parser.add_argument("--workers", type=int, nargs="+", default=sorted({1, available_cores()}))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        file = directory / "rows.json"
        num_rows = write_rows(file, options.mib * MIB)
        small = directory / "few.json"
        write_rows(small, 1)
        table = Table(title=f"{num_rows:,} rows, {file.stat().st_size / 1e6:,.0f} MB of JSON lines")
        for title in ("processes", "seconds", "MB/s", "MB/s per core", "peak memory, MiB", "above the imports, MiB"):
            table.add_column(title, justify="right")
        for number in options.workers:
            start_s, start_mib, _ = read(small, directory / f"start-{number}", number)
            seconds, peak_mib, found = read(file, directory / f"cache-{number}", number)
            assert found == num_rows
            rate = file.stat().st_size / 1e6 / (seconds - start_s)
            cells = [seconds - start_s, rate, rate / number, peak_mib, peak_mib - start_mib]
            table.add_row(str(number), *(f"{cell:,.1f}" for cell in cells))
        Console().print(table)


def write_rows(file: Path, num_bytes: int) -> int:
    """Different rows until the file is so large; returns their number."""
    generator, num_rows = random.Random(0), 0
    text = "".join(generator.choices(CHARACTERS, k=100_000))
    with file.open("w", encoding="utf-8") as opened:
        while opened.tell() < num_bytes:
            for _ in range(1000):
                begin = generator.randrange(len(text) - 200)
                row = {"content": text[begin : begin + generator.randint(20, 60)], "summary": text[begin + 40 :][:110]}
                opened.write(json.dumps(row, ensure_ascii=False) + "\n")
            num_rows += 1000
    return num_rows


def read(file: Path, cache: Path, num_workers: int) -> tuple[float, float, int]:
    """Seconds of a process that reads the file, its peak private memory in MiB with that of its workers, and the rows.

    Private memory (what only these processes hold): pages of a mapped file are the system's cache and are given back.
    """
    command = [sys.executable, "-c", READ, str(file), str(cache), str(num_workers)]
    start, peak = time.monotonic(), 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        parent = psutil.Process(process.pid)
        while process.poll() is None:
            peak = max(peak, private_memory(parent))
            time.sleep(0.1)
        seconds = time.monotonic() - start
        assert process.returncode == 0
        assert process.stdout is not None
        return seconds, peak / MIB, int(process.stdout.read())


def private_memory(parent: psutil.Process) -> int:
    """Bytes that only this process and its children hold."""
    total = 0
    try:
        for process in [parent, *parent.children(recursive=True)]:
            total += process.memory_full_info().uss
    except psutil.NoSuchProcess:
        pass  # it has just ended
    return total


if __name__ == "__main__":
    main()

"""The campaign: runs that are killed, damaged and hindered, then started again, must end as an undisturbed one.

python -m tests.faults.campaign --kills 50 --seed 0            # prints the table
python -m tests.faults.campaign --kills 50 --write docs/reliability.md   # and puts it into the page
"""

import argparse
import os

os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")

import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tests.faults.driver import DEMO, PHASES, Ended, Kill, arguments, result, run, start, warm_up, write_rows

MAX_STARTS = 6


class Campaign:
    """`directory` holds the undisturbed run, `reference`, and one folder per case."""

    def __init__(self, directory: Path, seed: int):
        self.directory, self.random = directory, random.Random(seed)
        self.results: Counter[str] = Counter()
        os.environ["HF_DATASETS_CACHE"] = str(directory / "cache")
        write_rows(directory / "reference")
        whole = self._start(directory / "reference")
        assert whole.code == 0, whole.output
        self.reference = result(directory / "reference")
        self.durations: dict[str, list[float]] = {phase: [] for phase in PHASES}
        for phase, duration in whole.phases:
            self.durations[phase].append(duration)
        assert all(self.durations.values()), self.durations

    def _start(
        self,
        directory: Path,
        kill: Kill | None = None,
        number: int = signal.SIGKILL,
        act: Callable[[], object] | None = None,
        **changes: object,
    ) -> Ended:
        # The reference's rows and cache, so that nothing but the fault differs
        files = {f"{name}_file": self.directory / "reference" / f"{name}.json" for name in ("train", "test")}
        files["validation_file"] = files["test_file"]
        return run(arguments(directory, **{**files, **changes}), directory / "log.txt", kill, number, act)

    def random_kill(self, phase: str) -> Kill:
        """Somewhere within one of the calls of a phase that the undisturbed run made."""
        occurrence = self.random.randrange(len(self.durations[phase]))
        return Kill(phase, occurrence, self.random.uniform(0, self.durations[phase][occurrence]))

    def case(self, name: str) -> Path:
        """An empty folder for a case."""
        directory = self.directory / f"case-{self.results.total()}"
        directory.mkdir()
        self.results[name] += 1
        return directory

    def finish(self, directory: Path, **changes: object) -> Ended:
        """Start a run until it ends, and compare what it leaves with the undisturbed one."""
        for _ in range(MAX_STARTS):
            ended = self._start(directory, **changes)
            if ended.code == 0:
                break
        assert ended.code == 0, ended.output[-4000:]
        found = result(directory)
        for name, expected in self.reference.items():
            assert found[name] == expected, f"{name} is not that of the undisturbed run\n{ended.output[-4000:]}"
        assert not list((directory / "run").glob(".incomplete*"))
        rows = [json.loads(line)["step"] for line in (directory / "run" / "metrics.jsonl").read_text().splitlines()]
        assert rows == sorted(rows) or rows[-1] == 0, rows  # each step's records once
        shutil.rmtree(directory)
        return ended

    def killed(self, phase: str, number: int = signal.SIGKILL) -> None:
        """Killed in this phase, and one time in three once more while it goes on."""
        directory = self.case(f"{signal.Signals(number).name} in {phase}")
        allowed = (-number,) if number == signal.SIGKILL else (143, -number)
        for _ in range(MAX_STARTS):
            kill = self.random_kill(phase)
            ended = self._start(directory, kill, number)
            if ended.code != 0:
                break
            shutil.rmtree(directory / "run")  # it had ended before the signal came: that is no case
        assert ended.code in allowed, (kill, ended.code, ended.output[-4000:])
        answers = _answers(directory)
        if self.random.random() < 1 / 3:
            self._start(directory, self.random_kill(self.random.choice(["step", "saving", "prediction"])), number)
        self.finish_keeping(directory, answers)

    def finish_keeping(self, directory: Path, answers: dict[int, str]) -> None:
        """Answers that were on the disk are those at the end."""
        now = {row_id: predict for row_id, predict, _ in self.reference["answers"]}
        assert answers.items() <= now.items()
        self.finish(directory)

    def damaged(self, damage: Callable[[Path], None]) -> None:
        """Killed after a few checkpoints; a file of the newest is damaged before it is started again."""
        directory = self.case(f"{damage.__name__} file of the newest checkpoint")
        self._start(directory, Kill("step", 7, 0.0))
        newest = max((directory / "run").glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
        files = sorted(path for path in newest.rglob("*") if path.is_file())
        damage(self.random.choice(files))
        ended = self.finish(directory)
        assert "passed over" in ended.output

    def full_disk(self) -> None:
        """It fills while the run is at work, which trains on without checkpoints; with room again it ends."""
        directory = self.case("full disk")
        with small_disk(directory / "run", "size=6m"):
            ballast = directory / "run" / "ballast"
            ended = self._start(
                directory,
                Kill("step", 0, 0.0),
                act=lambda: ballast.write_bytes(bytes(_free(directory / "run") - 24 * 1024)),
            )
            assert ended.code == 2, ended.output[-4000:]
            assert "checkpoint 2 could not be saved" in ended.output, ended.output[-4000:]
            assert "Make room and start" in ended.output, ended.output[-4000:]
            ballast.unlink()
            ended = self._start(directory)
            assert ended.code == 0, ended.output[-4000:]
            assert result(directory) == self.reference

    def read_only(self) -> None:
        """A directory that turned read-only between two starts."""
        directory = self.case("read-only directory")
        with small_disk(directory / "run", "size=16m"):
            self._start(directory, Kill("step", 5, 0.0))
            _mount("-o", "remount,ro", directory / "run")
            ended = self._start(directory)
            assert (ended.code, "cannot be written" in ended.output) == (2, True), ended.output[-4000:]
            assert "Traceback" not in ended.output
            _mount("-o", "remount,rw", directory / "run")
            ended = self._start(directory)
            assert ended.code == 0, ended.output[-4000:]
            assert result(directory) == self.reference

    def changed(self, what: str) -> None:
        """Rows or base that change between two starts are named; put back, the run goes on."""
        directory = self.case(f"{what} changed")
        base = directory / "base"
        shutil.copytree(DEMO / "base", base)
        rows = directory / "train.json"
        shutil.copy(self.directory / "reference" / "train.json", rows)
        changes = {"train_file": rows, "model_name_or_path": base}
        self._start(directory, Kill("step", 5, 0.0), **changes)
        file = rows if what == "train_file" else base / "model.safetensors"
        before = file.read_bytes()
        file.write_bytes(before[:-40] + before[-40:].replace(b"\n", b" ") if what == "train_file" else _flipped(before))
        ended = self._start(directory, **changes)
        assert ended.code == 2, ended.output[-4000:]
        assert (what if what == "train_file" else "base model has changed: model.safetensors") in ended.output
        file.write_bytes(before)
        self.finish(directory, **changes)

    def two_at_once(self) -> None:
        """The second run in one directory refuses, the first is not disturbed."""
        directory = self.case("two runs in one directory")
        words = arguments(directory, train_file=self.directory / "reference" / "train.json")
        first, pipe = start([*words, *_rows_of(self.directory / "reference")], directory / "first.txt")
        while not (directory / "run" / "run.json").exists():
            time.sleep(0.01)
        ended = self._start(directory)
        assert (ended.code, "is in use by another run" in ended.output) == (2, True), ended.output[-4000:]
        with os.fdopen(pipe, "rb") as reports:
            reports.read()
        assert os.waitpid(first, 0)[1] == 0, (directory / "first.txt").read_text()[-4000:]
        assert result(directory) == self.reference


def _rows_of(directory: Path) -> list[str]:
    return [f"--validation_file={directory / 'test.json'}", f"--test_file={directory / 'test.json'}"]


def truncated(path: Path) -> None:
    """Half of it."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zeroed(path: Path) -> None:
    """Its size, but zeros."""
    path.write_bytes(bytes(path.stat().st_size))


def deleted(path: Path) -> None:
    """Gone."""
    path.unlink()


def _flipped(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def _answers(directory: Path) -> dict[int, str]:
    file = directory / "run" / "predictions.jsonl"
    return _lines(file.read_bytes()) if file.exists() else {}


def _lines(content: bytes) -> dict[int, str]:
    records = [json.loads(line) for line in content.splitlines(keepends=True) if line.endswith(b"\n")]
    return {record["row_id"]: record["predict"] for record in records}


def can_mount() -> bool:
    """Whether small disks can be made here."""
    with tempfile.TemporaryDirectory() as directory:
        try:
            _mount("-t", "tmpfs", "-o", "size=64k", "tmpfs", directory)
        except (OSError, subprocess.CalledProcessError):
            return False
        subprocess.run(["umount", directory], check=True)
        return True


@contextmanager
def small_disk(directory: Path, options: str) -> Iterator[None]:
    """A tmpfs at `directory`."""
    directory.mkdir()
    _mount("-t", "tmpfs", "-o", options, "tmpfs", directory)
    try:
        yield
    finally:
        subprocess.run(["umount", directory], check=True)


def _mount(*words: object) -> None:
    subprocess.run(["mount", *map(str, words)], check=True, capture_output=True)


def _free(directory: Path) -> int:
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize


def main() -> None:
    """Run the campaign and print, or write, the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="number of kill -9, spread over the phases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=Path, help="page with a line <!-- campaign --> … <!-- end --> to fill")
    options = parser.parse_args()
    warm_up()
    start_s = time.monotonic()
    good: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as directory:
        campaign = Campaign(Path(directory), options.seed)
        phases = list(PHASES)
        cases = [partial(campaign.killed, phases[number % len(phases)]) for number in range(options.kills)]
        asked = ("start-up", "tokenisation", "step", "evaluation", "saving", "prediction")
        cases += [partial(campaign.killed, phase, signal.SIGTERM) for phase in asked]
        cases += [partial(campaign.damaged, damage) for damage in 3 * (truncated, zeroed, deleted)]
        cases += [partial(campaign.changed, what) for what in ("train_file", "base model")]
        cases += [campaign.two_at_once, *([campaign.full_disk, campaign.read_only] if can_mount() else [])]
        for case in cases:
            before = campaign.results.copy()
            try:
                case()
                good += campaign.results - before
            except (AssertionError, TimeoutError):
                traceback.print_exc()
    lines = ["| fault | cases | ended as the undisturbed run |", "|---|---:|---:|"]
    lines += [f"| {name} | {count} | {good[name]} |" for name, count in campaign.results.items()]
    total, minutes = campaign.results.total(), (time.monotonic() - start_s) / 60
    lines += [f"| all | {total} | {good.total()} |", "", f"{minutes:.0f} minutes on one core, seed {options.seed}."]
    table = "\n".join(lines) + "\n"
    sys.stdout.write(table)
    if options.write:
        text = options.write.read_text(encoding="utf-8")
        before, _, rest = text.partition("<!-- campaign -->\n")
        after = rest.partition("<!-- end -->")[2]
        options.write.write_text(f"{before}<!-- campaign -->\n{table}<!-- end -->{after}", encoding="utf-8")
    sys.exit(good != campaign.results)


if __name__ == "__main__":
    main()

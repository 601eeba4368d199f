"""`softlaunch status RUN…`: step, loss, speed, time left, last complete checkpoint and restarts of runs."""

import argparse
import dataclasses
import json
from datetime import timedelta
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from softlaunch.arguments.names import check_names
from softlaunch.errors import ArgumentError, CheckpointError
from softlaunch.launching.settings import read_settings
from softlaunch.launching.status import DEAD, FINISHED, PREEMPTED, RUNNING, SILENT, STARTING, RunStatus, read_status
from softlaunch.messages import say
from softlaunch.run_directory import shown_score

_STYLES = {FINISHED: "green", RUNNING: "cyan", STARTING: "cyan", PREEMPTED: "yellow", SILENT: "red", DEAD: "red"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="output_dir of a run, or its argument file")
    parser.add_argument("--json", action="store_true", help="print a JSON object per run")


def run(arguments: argparse.Namespace) -> None:
    """Print a line per run. Directories without a run are named, and are an error when there is no other."""
    statuses, problems = [], []
    for name in arguments.runs:
        try:
            statuses.append(read_status(_directory(name)))
        except CheckpointError as error:
            problems.append(error)
    if not statuses:
        raise problems[0]
    console, notes = Console(highlight=False), Console(stderr=True, highlight=False, markup=False)
    for problem in problems:
        notes.print(str(problem), soft_wrap=True)
    if arguments.json:
        for status in statuses:
            text = json.dumps({**dataclasses.asdict(status), "directory": str(status.directory)}, ensure_ascii=False)
            console.print(text, soft_wrap=True, markup=False)
        return
    console.print(_table(statuses))
    for status in statuses:
        if status.state == DEAD:
            logs = " ".join(str(status.directory / "logs" / name) for name in status.logs)
            text = say("{run} died; started again, it goes on from its last checkpoint.", run=status.directory)
            wrote = [say("Its processes wrote {logs}", logs=logs)] if logs else []
            console.print(" ".join([text, *wrote]), soft_wrap=True, markup=False)


def _directory(run: str) -> Path:
    if not run.endswith(".json"):
        return Path(run)
    output_dir = read_settings([run]).output_dir
    if output_dir is None:
        check_names([run])
        raise ArgumentError("{file}: output_dir is missing", file=run)
    return Path(output_dir)


def _table(statuses: list[RunStatus]) -> Table:
    names = (
        say("run"),
        say("state"),
        say("step"),
        say("loss"),
        say("tokens/s"),
        say("left"),
        say("saved"),
        say("restarts"),
    )
    table = Table(box=box.SIMPLE)
    for number, name in enumerate(names):
        table.add_column(
            name, justify="right" if 2 <= number <= 5 or number == 7 else "left", overflow="fold", no_wrap=number == 1
        )
    for status in statuses:
        table.add_row(
            str(status.directory),
            f"[{_STYLES[status.state]}]{_state(status)}[/]",
            f"{_or_dash(status.step)}/{_or_dash(status.num_steps)}",
            "-" if status.loss is None else f"{status.loss:.4f}",
            "-" if status.tokens_per_second is None else f"{status.tokens_per_second:,.0f}",
            "-" if status.seconds_left is None else _time(status.seconds_left),
            (status.checkpoint or "-").removeprefix("checkpoint-"),
            str(status.restarts),
        )
    return table


def _state(status: RunStatus) -> str:
    if status.state == FINISHED and status.scores:
        scores = ", ".join(f"{name} {shown_score(name, value)}" for name, value in status.scores.items())
        return say("finished, {scores}", scores=scores)
    if status.state == SILENT and status.silent_s is not None:
        return say("silent for {time}", time=_time(status.silent_s))
    return {
        FINISHED: say("finished"),
        PREEMPTED: say("asked to end, to go on"),
        RUNNING: say("running"),
        STARTING: say("starting"),
        SILENT: say("silent"),
        DEAD: say("dead"),
    }[status.state]


def _time(seconds: float) -> str:
    try:
        return str(timedelta(seconds=round(seconds)))
    except OverflowError:  # of a run that logs nonsense
        return "-"


def _or_dash(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"

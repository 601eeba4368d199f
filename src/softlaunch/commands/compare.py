"""`softlaunch compare RUN RUN …`: runs side by side, in a table and a picture, from the files that they left."""

import argparse
from collections.abc import Callable
from pathlib import Path

from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table

from softlaunch.errors import ArgumentError
from softlaunch.evaluation.run_summary import RunSummary, read_runs
from softlaunch.messages import say
from softlaunch.run_directory import SCORES, shown_score

_MIB = 1024**2
_FORMATS = (".png", ".pdf", ".svg")
_FILE_WIDTH = 160  # where the output goes into a file or a pipe, whose width nobody knows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The runs, and where the picture goes."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="output directory of a run")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("comparison.png"),
        help="file of the picture, .png, .pdf or .svg (%(default)s)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Print the table and write the picture.

    Raises CheckpointError for a directory without a run's results, ArgumentError for a picture that cannot be written.
    """
    output: Path = arguments.output
    if output.suffix.lower() not in _FORMATS:
        raise ArgumentError(
            "--output {file}: the picture's kind follows from the name's end, one of {allowed}.",
            file=output,
            allowed=", ".join(_FORMATS),
        )
    runs = read_runs(arguments.runs)
    console = Console()
    if not console.is_terminal:
        console = Console(width=_FILE_WIDTH)
    console.print(comparison(runs))

    from softlaunch.evaluation.run_figure import FONT_PACKAGE, draw_runs  # matplotlib: a second, after the table

    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        named = draw_runs(runs, output)
    except OSError as error:
        raise ArgumentError(
            "--output {file} cannot be written: {reason}. Name a file in a directory that you may write to.",
            file=output,
            reason=error.strerror,
        ) from error
    lines = [say("The picture is in {file}", file=output)]
    if not named:
        lines += _legend(runs, FONT_PACKAGE)
    console.print("\n".join(lines), soft_wrap=True, highlight=False, markup=False)


def _legend(runs: list[RunSummary], package: str) -> list[str]:
    """The classes that have numbers in the picture, one line for all runs with the same ones."""
    lines = [
        say(
            "No font here has the characters of the classes' names, so the picture shows numbers; install one, such as "
            "{package}.",
            package=package,
        )
    ]
    classes: dict[tuple[str, ...], list[str]] = {}
    for run in runs:
        if run.confusion:
            classes.setdefault(tuple(run.confusion.names), []).append(run.name)
    for names, of_runs in classes.items():
        lines.append(f"{', '.join(of_runs)}: " + ", ".join(f"{number} {name}" for number, name in enumerate(names)))
    return lines


def comparison(runs: list[RunSummary]) -> Group:
    """For rich: a column per run, the best of each score in bold, and under it what makes scores incomparable."""
    table = Table(title=say("{n} runs", n=len(runs)))
    table.add_column("")
    for run in runs:
        table.add_column(escape(run.name), justify="right", overflow="fold")
    table.add_row(say("method"), *(run.method or "–" for run in runs))
    for score in SCORES:
        found = [run.scores[score] for run in runs if score in run.scores]
        if found:
            best = min(found) if score == "loss" else max(found)
            table.add_row(score, *(_score(run, score, best) for run in runs))
    for title, show in _properties().items():
        table.add_row(title, *map(show, runs))
    return Group(table, *map(escape, _remarks(runs)))


def _score(run: RunSummary, score: str, best: float) -> str:
    if score not in run.scores:
        return "–"
    value = run.scores[score]
    text = shown_score(score, value)
    return f"[bold]{text}[/bold]" if value == best else text


def _optional(value: float | None, template: str) -> str:
    return "–" if value is None else template.format(value)


def _trainable_share(run: RunSummary) -> str:
    if run.trainable is None or not run.parameters:
        return "–"
    return f"{100 * run.trainable / run.parameters:.2f} %"


def _properties() -> dict[str, Callable[[RunSummary], str]]:
    """What is shown of a run beside its scores: title → the cell."""
    return {
        say("trained parameters"): lambda run: _optional(run.trainable, "{:,}"),
        say("share of all parameters"): _trainable_share,
        say("training, seconds"): lambda run: _optional(run.train_s, "{:,.1f}"),
        say("peak memory, GiB"): lambda run: _optional(run.peak_memory_gib, "{:.2f}"),
        say("saved weights, MiB"): lambda run: _optional(
            None if run.saved_bytes is None else run.saved_bytes / _MIB, "{:,.2f}"
        ),
    }


def _remarks(runs: list[RunSummary]) -> list[str]:
    """What a reader has to know before he holds one score against another."""
    remarks = []
    scored = [run for run in runs if run.scores]
    validated = [run.name for run in scored if run.split == "eval"]
    if validated:
        remarks.append(say("Scores of validation rows, for want of test results: {runs}", runs=", ".join(validated)))
    lost = [run.name for run in scored if run.lost_in_validation]
    if lost:
        remarks.append(say("Losses of validation rows, for want of those of test rows: {runs}", runs=", ".join(lost)))
    files = {run.scored_file for run in scored if run.scored_file}
    if len(files) > 1:
        remarks.append(say("The scores come from different files: {files}", files=", ".join(sorted(files))))
    return remarks

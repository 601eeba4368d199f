"""`softlaunch adapters`: what the adapters and tuned models in some directories are and how good they are."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from softlaunch.adapter_files import AdapterFiles, find_adapters
from softlaunch.messages import say
from softlaunch.run_directory import MAIN_SCORES, shown_score

_DESCRIPTION = """\
Directories are searched five levels deep: output directories of runs, checkpoints, adapters alone, P-Tuning v2
checkpoints of the original scripts, whole models that were tuned or merged. Scores are those of the run's test rows,
loss is that of its validation rows; for a checkpoint all are of the evaluation at its step. Into a
pipe go lines with tabs between the columns, with whole paths and numbers."""
_UNKNOWN = "–"
_COLUMNS = ("where", "method", "base", "parameters", "size", "steps", *MAIN_SCORES)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = f"{parser.description}\n\n{_DESCRIPTION}"
    parser.add_argument("directories", metavar="DIR", nargs="+", type=Path, help="where to look")


def run(arguments: argparse.Namespace) -> None:
    """Print the table. Raises CheckpointError for a directory that does not exist."""
    found = [(directory, adapter) for directory in arguments.directories for adapter in find_adapters(directory)]
    if sys.stdout.isatty():
        _print_table(found, in_one_directory=len(arguments.directories) == 1)
        return
    lines = [[*_COLUMNS], *(_plain_row(adapter) for _, adapter in found)]
    sys.stdout.writelines("\t".join(line) + "\n" for line in lines)


def _plain_row(adapter: AdapterFiles) -> list[str]:
    numbers = [adapter.num_parameters, adapter.num_bytes, adapter.steps]
    return [
        str(adapter.path),
        _method(adapter),
        adapter.base or _UNKNOWN,
        *(_UNKNOWN if number is None else str(number) for number in numbers),
        *_scores(adapter, MAIN_SCORES),
    ]


def _print_table(found: list[tuple[Path, AdapterFiles]], *, in_one_directory: bool) -> None:
    console = Console()
    if not found:
        console.print(say("There are no adapters there."))
        return
    table = Table(box=None, title=str(found[0][0]) if in_one_directory else None, padding=(0, 1, 0, 0))
    for name in (say("where"), say("method"), say("base")):
        table.add_column(name, overflow="fold")
    shown = [name for name in MAIN_SCORES if any(name in adapter.scores for _, adapter in found)]
    for name in (say("trained"), say("size"), say("steps"), *shown):
        table.add_column(name, justify="right", no_wrap=True)
    for directory, adapter in found:
        where = adapter.path.relative_to(directory) if in_one_directory else adapter.path
        base = Path(adapter.base).name if adapter.base else _UNKNOWN
        numbers = [
            _short(adapter.num_parameters, ""),
            _short(adapter.num_bytes, "B"),
            _UNKNOWN if adapter.steps is None else str(adapter.steps),
        ]
        method = say("damaged, see below") if adapter.damage else adapter.method
        style = "red" if adapter.damage else None
        table.add_row(str(where), method, base, *numbers, *_scores(adapter, shown), style=style)
    console.print(table)
    for _, adapter in found:
        if adapter.damage:
            console.print(f"{adapter.path}: {adapter.damage}", style="red", markup=False, highlight=False)


def _method(adapter: AdapterFiles) -> str:
    parts = [adapter.method] if adapter.method else []
    return "; ".join([*parts, say("damaged: {what}", what=adapter.damage)] if adapter.damage else parts)


def _scores(adapter: AdapterFiles, names: Sequence[str]) -> list[str]:
    return [shown_score(name, adapter.scores[name]) if name in adapter.scores else _UNKNOWN for name in names]


def _short(number: int | None, unit: str) -> str:
    if number is None:
        return _UNKNOWN
    for prefix, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.1f} {prefix}{unit}"
    return f"{number} {unit}".strip()

"""`softlaunch check RUN.json`: everything that can be known before a run starts, in one list; exit code 0 or 2.

Under `accelerate launch -m softlaunch.cli check RUN.json` the launched processes themselves take part: they must be as
many as was asked for and add up a number together. Alone it starts as many on this machine for that.
"""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from softlaunch.commands.plan import add_machine_arguments
from softlaunch.entry import USER_ERROR_EXIT_CODE
from softlaunch.errors import UserError
from softlaunch.launching.check import (
    FINE,
    PROBLEM,
    WARNING,
    Finding,
    check_disk,
    check_gpus,
    check_port,
    gpu_memories_gib,
)
from softlaunch.launching.deepspeed_file import check_deepspeed_file, owned_values, read_deepspeed_file, resolved
from softlaunch.launching.memory import GIB
from softlaunch.launching.plan import make_plan
from softlaunch.launching.settings import RunSettings, read_settings
from softlaunch.launching.shape import UnknownSize, read_shape
from softlaunch.launching.strategy import Machines, Strategy, default_launch_file, read_strategy
from softlaunch.messages import say

_MARKS = {FINE: "[green]ok[/green]     ", WARNING: "[yellow]look[/yellow]   ", PROBLEM: "[red]problem[/red]"}
_DEFAULT_PORT = 29500


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "softlaunch check RUN.json [options] [--any_option_of_the_run value …]"
    parser.add_argument("run_file", metavar="RUN.json", help="argument file of the run; options behind it win over it")
    add_machine_arguments(parser)
    parser.add_argument(
        "--gpu-memory-gib", type=float, metavar="GIB", help="of one GPU; what this machine has if unset"
    )
    parser.add_argument("--port", type=int, default=_DEFAULT_PORT, help="where the processes meet (%(default)s)")
    parser.add_argument("--skip-data", action="store_true", help="do not read and encode the rows")
    parser.set_defaults(overrides=[])


def run(arguments: argparse.Namespace) -> None:
    """Print the list; ends the program with exit code 2 when it holds a problem."""
    console, is_first = Console(highlight=False), os.environ.get("RANK", "0") == "0"
    logging.getLogger("softlaunch").setLevel(logging.ERROR)  # what it finds stands in the list
    num_problems = 0
    for finding in _findings(arguments):
        num_problems += finding.level == PROBLEM
        if is_first:
            console.print(f"{_MARKS[finding.level]} {finding.what}: ", end="")
            console.print(finding.detail, markup=False)
    if num_problems:
        if is_first:
            console.print(say("{number} problems", number=num_problems))
        sys.exit(USER_ERROR_EXIT_CODE)


def _findings(arguments: argparse.Namespace) -> Iterator[Finding]:
    argv = [arguments.run_file, *arguments.overrides]
    parsed: list[Any] = []
    machines = Machines(arguments.nodes, arguments.gpus_per_node, arguments.gpu_memory_gib or 80.0)
    settings: RunSettings | None = None
    unread = None
    try:
        settings = read_settings(argv)
    except UserError as error:
        unread = error
    yield from _step(say("arguments"), lambda: _check_arguments(argv, settings, parsed))
    if settings is None:
        if parsed:
            yield Finding(PROBLEM, say("plan"), str(unread))
        return
    yield from _findings_of(settings, parsed, machines, arguments)


def _findings_of(
    settings: RunSettings, parsed: list[Any], machines: Machines, arguments: argparse.Namespace
) -> Iterator[Finding]:
    try:
        strategy = read_strategy(arguments.launch_file or default_launch_file(machines))
    except UserError as error:
        yield Finding(PROBLEM, say("plan"), str(error))
        return
    found_gib = gpu_memories_gib()
    if not parsed:
        yield Finding(WARNING, say("base model, rows"), say("not looked at before the arguments are right"))
    else:
        yield from _step(say("base model"), lambda: _check_base(parsed[0], settings.classifies))
        yield from _step("output_dir", lambda: _check_output_dir(parsed[0]))
    if strategy.deepspeed_file is not None:
        yield from _step(say("DeepSpeed"), lambda: _check_deepspeed(strategy, settings, machines))
    yield from _step(say("memory"), lambda: _check_plan(settings, strategy, machines, arguments, found_gib))
    if parsed and not arguments.skip_data:
        yield from _step(say("rows"), lambda: _check_rows(parsed[0], settings.classifies))
    if machines.on_gpu:
        yield check_gpus(machines.gpus_per_node, found_gib)
    if "WORLD_SIZE" not in os.environ:
        yield check_port(arguments.port)
    yield from _step(say("processes"), lambda: _check_processes(machines, bool(found_gib)))


def _step(what: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """The findings of one check; what stops it is one too."""
    try:
        yield from check()
    except UnknownSize as error:
        yield Finding(WARNING, what, str(error))
    except UserError as error:
        yield Finding(PROBLEM, what, str(error))


def _check_arguments(argv: list[str], settings: RunSettings | None, parsed: list[Any]) -> Iterator[Finding]:
    from softlaunch.arguments import parse_arguments
    from softlaunch.arguments.methods import chosen_methods

    found = parse_arguments(argv, **({} if settings is None else settings.reading))
    if settings is not None:
        chosen_methods(found, settings.methods)
    parsed.append(found)
    number = say("{number} options are given", number=len(found.sources))
    yield Finding(FINE, say("arguments"), number)
    yield from (Finding(WARNING, say("arguments"), warning) for warning in found.warnings)
    if settings is not None:
        yield Finding(FINE, say("method"), _method(settings))


def _method(settings: RunSettings) -> str:
    names = " + ".join(settings.methods)
    if settings.names_method:
        return names
    return say("no option names one: recipes/finetune_chatglm.py trains {method}, the others need more", method=names)


def _check_base(parsed: Any, classifies: bool) -> Iterator[Finding]:
    from softlaunch.models import check_base

    check_base(parsed, answers=not classifies)
    yield Finding(FINE, say("base model"), say("{path} is complete", path=parsed.model.model_name_or_path))


def _check_output_dir(parsed: Any) -> Iterator[Finding]:
    from softlaunch.training.begin import check_writable
    from softlaunch.training.run_state import find_run

    output_dir = Path(str(parsed.training.output_dir))
    check_writable(output_dir)
    if parsed.training.do_train and not find_run(parsed).training.do_train:
        detail = say("the training in {output_dir} is finished; set restart to train anew", output_dir=output_dir)
        yield Finding(WARNING, "output_dir", detail)
    else:
        yield Finding(FINE, "output_dir", say("{output_dir} can be written", output_dir=output_dir))


def _check_deepspeed(strategy: Strategy, settings: RunSettings, machines: Machines) -> Iterator[Finding]:
    assert strategy.deepspeed_file is not None
    check_deepspeed_file(strategy.deepspeed_file, settings, machines.num_processes)
    try:
        hidden_size = read_shape(settings.model_name_or_path).hidden_size
    except UnknownSize:
        hidden_size = None
    owned = owned_values(settings, machines.num_processes, hidden_size)
    values = resolved(read_deepspeed_file(strategy.deepspeed_file), owned)
    text = ", ".join(f"{key.removeprefix('zero_optimization.')} {value}" for key, value in values.items())
    yield Finding(FINE, say("DeepSpeed"), text)


def _check_plan(
    settings: RunSettings, strategy: Strategy, machines: Machines, arguments: argparse.Namespace, found_gib: list[float]
) -> Iterator[Finding]:
    plan = make_plan(read_shape(settings.model_name_or_path, settings.num_classes), settings, strategy, machines)
    room = arguments.gpu_memory_gib or min(found_gib, default=None)
    peak = f"{plan.memory.peak / GIB:.1f}"
    if machines.on_gpu and room is not None:
        fits = plan.memory.peak <= room * GIB
        detail = say("{peak} GiB per GPU of {room:.1f}; softlaunch plan says more", peak=peak, room=room)
        yield Finding(FINE if fits else PROBLEM, say("memory"), detail)
    else:
        yield Finding(FINE, say("memory"), say("{peak} GiB per process by the plan", peak=peak))
    if plan.workload is not None and settings.output_dir:
        yield check_disk(settings.output_dir, plan.workload.disk_bytes)


def _check_rows(parsed: Any, classifies: bool) -> Iterator[Finding]:
    import datasets

    datasets.disable_progress_bars()
    told = _Told()
    logger = logging.getLogger("softlaunch.data")
    logger.addHandler(told)
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    try:
        counts = _numbers_of_classified_rows(parsed) if classifies else _numbers_of_rows(parsed)
    finally:
        logger.removeHandler(told)
        logger.propagate = True
    yield Finding(FINE, say("rows"), ", ".join(f"{name} {number:,}" for name, number in counts.items()))
    yield from (Finding(WARNING, say("rows"), record.getMessage()) for record in told.records)


def _numbers_of_rows(parsed: Any) -> dict[str, int]:
    from softlaunch.data.dataset import load_rows
    from softlaunch.models import load_base_tokenizer

    rows = load_rows(parsed, load_base_tokenizer(parsed))
    found = {"train_file": rows.train, "validation_file": rows.validation, "test_file": rows.test}
    return {name: len(part) for name, part in found.items() if part is not None}


def _numbers_of_classified_rows(parsed: Any) -> dict[str, int]:
    from softlaunch.data.classification import load_class_rows
    from softlaunch.models.encoder import load_text_tokenizer
    from softlaunch.training.classifier_model import trained_classes

    model = parsed.model
    tokenizer = load_text_tokenizer(model.model_name_or_path, parsed.data.max_source_length, **model.hub)
    rows = load_class_rows(parsed, tokenizer, trained_classes(parsed))
    return {say("classes"): len(rows.classes), **{step: len(part.encoded) for step, part in rows.steps.items()}}


class _Told(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


def _check_processes(machines: Machines, on_gpu: bool) -> Iterator[Finding]:
    from softlaunch.training.meeting import add_up_here, add_up_launched

    if "WORLD_SIZE" in os.environ:
        number = add_up_launched()
        level = FINE if number == machines.num_processes else PROBLEM
        detail = say("{number} of {wanted} processes added up a number", number=number, wanted=machines.num_processes)
        yield Finding(level, say("processes"), detail)
    else:
        number = add_up_here(machines.processes_per_node, on_gpu=on_gpu)
        yield Finding(FINE, say("processes"), say("{number} on this machine added up a number", number=number))

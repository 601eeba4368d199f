"""`softlaunch plan RUN.json`: memory per GPU by part, steps, tokens, communication and disk; fits or does not fit."""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from softlaunch.arguments.names import check_names
from softlaunch.errors import ArgumentError
from softlaunch.launching.memory import GIB
from softlaunch.launching.plan import Change, Plan, make_plan
from softlaunch.launching.settings import read_settings
from softlaunch.launching.shape import read_shape
from softlaunch.launching.strategy import Machines, default_launch_file, read_strategy
from softlaunch.messages import say

GIGABYTE = 1e9


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "softlaunch plan RUN.json [options] [--any_option_of_the_run value …]"
    parser.add_argument("run_file", metavar="RUN.json", help="argument file of the run; options behind it win over it")
    add_machine_arguments(parser)
    parser.add_argument("--gpu-memory-gib", type=float, default=80.0, metavar="GIB", help="of one GPU (80)")
    parser.add_argument("--tflops", type=float, default=150.0, help="what a GPU reaches in 10^12 FLOP/s (150)")
    parser.add_argument(
        "--link-gb-per-s", type=float, default=20.0, metavar="GB", help="what a process sends to others in GB/s (20)"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON, in bytes")
    parser.set_defaults(overrides=[])


def add_machine_arguments(parser: argparse.ArgumentParser) -> None:
    """What `plan` and `submit` both ask."""
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="number of nodes (1)")
    parser.add_argument(
        "--gpus-per-node", type=int, default=1, metavar="G", help="GPUs of each, 0 for one process on its CPU (1)"
    )
    parser.add_argument(
        "--launch-file",
        metavar="FILE",
        help="Accelerate configuration; launch/accelerate/ddp.yaml for several processes, else single_gpu.yaml",
    )


def own_options(arguments: argparse.Namespace) -> set[str]:
    """Names of the command's options, which may be meant by a name that no option of the run has."""
    return vars(arguments).keys() - {"recipe", "run_file", "overrides", "run"}


def run(arguments: argparse.Namespace) -> None:
    """Print the plan that the command line asks for."""
    argv = [arguments.run_file, *arguments.overrides]
    check_names(argv, own_options(arguments))
    for name, value in (("--tflops", arguments.tflops), ("--link-gb-per-s", arguments.link_gb_per_s)):
        if not value > 0:
            raise ArgumentError("{name} {value} must be above 0", name=name, value=value)
    settings = read_settings(argv)
    machines = Machines(arguments.nodes, arguments.gpus_per_node, arguments.gpu_memory_gib)
    strategy = read_strategy(arguments.launch_file or default_launch_file(machines))
    plan = make_plan(read_shape(settings.model_name_or_path, settings.num_classes), settings, strategy, machines)
    console = Console()
    if arguments.json:
        console.print_json(json.dumps(_figures(plan)))
        return
    console.print(_title(plan, arguments.run_file), highlight=False)
    if not settings.names_method:
        console.print(say("No option names a method, so this is for all of the base; --tuning lora, say, for another."))
    console.print(_memory_table(plan))
    for line in [*_workload_lines(plan, arguments.tflops, arguments.link_gb_per_s), *_host_lines(plan)]:
        console.print(line, highlight=False)
    console.print(_verdict(plan), highlight=False)


def _title(plan: Plan, run_file: str) -> str:
    shape, machines = plan.shape, plan.machines
    share = plan.trained / shape.parameters
    return say(
        "{run}: {model}, {parameters:,} parameters, {methods} trains {trained:,} ({share:.3%}); {nodes} × {gpus} "
        "processes, {strategy}",
        run=run_file,
        model=Path(plan.settings.model_name_or_path).name,
        parameters=shape.parameters,
        methods=" + ".join(plan.settings.methods),
        trained=plan.trained,
        share=share,
        nodes=machines.num_nodes,
        gpus=machines.processes_per_node,
        strategy=plan.strategy.name,
    )


def _memory_table(plan: Plan) -> Table:
    place = say("per GPU") if plan.machines.on_gpu else say("per process")
    table = Table(say("part"), title=say("memory {place}", place=place))
    table.add_column("GiB", justify="right")
    for name, size in plan.memory.parts.items():
        if size:
            table.add_row(_part(name, plan.settings.per_device_eval_batch_size), _gib(size))
        if name == "activations" and size:
            other = not plan.settings.activation_checkpointing
            text = say("… with checkpointing") if other else say("… without checkpointing")
            table.add_row(f"[dim]{text}[/dim]", f"[dim]{_gib(plan.memory.activations_if[other])}[/dim]")
    table.add_section()
    table.add_row(
        say("peak, {moment}", moment=_moment(plan.memory.peak_moment)), f"[bold]{_gib(plan.memory.peak)}[/bold]"
    )
    return table


def _part(name: str, rows: int) -> str:
    return {
        "weights": say("weights of the base"),
        "weights in use": say("split weights put together for a while"),
        "trained": say("trained parameters"),
        "gradients": say("gradients"),
        "optimizer": say("optimizer"),
        "activations": say("activations"),
        "logits": say("logits and their gradients"),
        "evaluation": say("evaluation, batch {rows}", rows=rows),
        "generation": say("generation with its cache, batch {rows}", rows=rows),
        "CUDA": say("CUDA and fragmentation"),
    }[name]


def _moment(name: str) -> str:
    return {
        "model loaded": say("when the model is loaded"),
        "backward begins": say("when the backward pass begins"),
        "backward inside": say("inside the backward pass"),
        "backward ends": say("when the backward pass ends"),
        "optimizer step": say("in the optimizer's step"),
        "evaluation": say("in the evaluation"),
        "generation": say("while answers are generated"),
    }[name]


def _workload_lines(plan: Plan, tflops: float, link_gb_per_s: float) -> list[str]:
    work = plan.workload
    if work is None:
        return []
    steps = say("unknown number of") if work.num_steps is None else f"{work.num_steps:,}"
    lines = [
        say("{steps} steps of {rows:,} rows", steps=steps, rows=work.rows_per_step)
        + (f" ({say('{rows:,} rows in the file', rows=work.num_rows)})" if work.num_rows is not None else "")
        + (say(", at most {tokens:,} tokens", tokens=work.num_tokens) if work.num_tokens is not None else "")
    ]
    if plan.machines.on_gpu:
        compute = work.flop_per_step / plan.machines.num_processes / (tflops * 1e12)
        send = work.sent_bytes_per_step / (link_gb_per_s * GIGABYTE)
        lines.append(
            say(
                "a step: {compute:.2f} s of computing at {tflops:g} TFLOP/s, {send:.2f} s to send {gib} GiB per "
                "process at {link:g} GB/s",
                compute=compute,
                tflops=tflops,
                send=send,
                gib=_gib(work.sent_bytes_per_step),
                link=link_gb_per_s,
            )
        )
    if work.num_checkpoints != 0:
        number = say("an unknown number of") if work.num_checkpoints is None else work.num_checkpoints
        lines.append(
            say(
                "{number} checkpoints of {size} GiB stay on disk; {disk} GiB must be free",
                number=number,
                size=_gib(work.checkpoint_bytes),
                disk=_gib(work.disk_bytes),
            )
        )
    return lines


def _host_lines(plan: Plan) -> list[str]:
    if not plan.machines.on_gpu:
        return []
    return [
        say("host memory per node: {gib} GiB, most of it while loading or for offloading", gib=_gib(plan.memory.host))
    ]


def _verdict(plan: Plan) -> str:
    if not plan.machines.on_gpu:
        return say("{gib} GiB per process must be free on the node", gib=_gib(plan.memory.peak))
    facts = {"peak": _gib(plan.memory.peak), "room": f"{plan.machines.gpu_memory_gib:g}"}
    if plan.fits:
        return "[green]" + say("fits: {peak} of {room} GiB", **facts) + "[/green]"
    verdict = "[red]" + say("does not fit: {peak} of {room} GiB", **facts) + "[/red]"
    if not plan.changes:
        return verdict + "\n" + say("no single setting makes it fit: take more or larger GPUs, or a smaller model")
    intro = say("change first:") if len(plan.changes) == 1 else say("change these, the first ones first:")
    return "\n".join([verdict, intro, *(f"  {_as_words(plan, change)}" for change in plan.changes)])


def _as_words(plan: Plan, change: Change) -> str:
    """The change as words of a command line, and the peak that it leads to."""
    words = [(change.name, change.value), *change.also]
    text = " ".join(f"--{name.removeprefix('--')} {value}" for name, value in words)
    peak = make_plan(plan.shape, change.settings, change.strategy, plan.machines).memory.peak
    return say("{words}: {peak} GiB", words=text, peak=_gib(peak))


def _figures(plan: Plan) -> dict[str, Any]:
    memory = plan.memory
    return {
        "parameters": plan.shape.parameters,
        "trained_parameters": plan.trained,
        "methods": plan.settings.methods,
        "num_processes": plan.machines.num_processes,
        "memory_per_process": memory.parts,
        "moments": memory.moments,
        "peak": memory.peak,
        "host_memory_per_node": memory.host,
        "activations_without_checkpointing": memory.activations_if[False],
        "activations_with_checkpointing": memory.activations_if[True],
        "workload": dataclasses.asdict(plan.workload) if plan.workload else None,
        "fits": plan.fits,
        "changes": [{change.name: change.value, **dict(change.also)} for change in plan.changes],
    }


def _gib(size: float) -> str:
    return f"{size / GIB:.2f}"

"""`softlaunch submit RECIPE RUN.json`: the run as a Slurm job, or as a manifest for Kubernetes."""

import argparse
import subprocess
import time

from rich.console import Console

from softlaunch.arguments.names import check_names
from softlaunch.commands.plan import add_machine_arguments, own_options
from softlaunch.errors import LaunchError
from softlaunch.launching.job import Job, make_job
from softlaunch.launching.kubernetes import render_pytorchjob
from softlaunch.launching.profile import read_profile
from softlaunch.launching.settings import read_settings
from softlaunch.launching.slurm import render_sbatch
from softlaunch.launching.strategy import Machines, default_launch_file
from softlaunch.launching.submit import has_slurm, submit, test_script, wait
from softlaunch.messages import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "softlaunch submit RECIPE RUN.json [options] [--any_option_of_the_run value …]"
    parser.add_argument("recipe", metavar="RECIPE", help="as recipes/ptuning_chatglm.py")
    parser.add_argument("run_file", metavar="RUN.json", help="argument file of the run; options behind it win over it")
    add_machine_arguments(parser)
    parser.add_argument("--profile", metavar="FILE", help="the cluster's facts: partition, account, modules, …")
    parser.add_argument(
        "--array",
        action="append",
        default=[],
        metavar="OPTION=A,B",
        help="one task per value, each in a directory of its own; several are crossed",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the script, and what Slurm says of it")
    parser.add_argument("--wait", action="store_true", help="until the job has ended; a failure ends with its log")
    parser.add_argument("--kubernetes", action="store_true", help="a Kubeflow PyTorchJob, for kubectl")
    parser.set_defaults(overrides=[])


def run(arguments: argparse.Namespace) -> None:
    """Submit the job that the command line describes, or print it."""
    check_names([arguments.run_file, *arguments.overrides], own_options(arguments))
    machines = Machines(arguments.nodes, arguments.gpus_per_node)
    job = make_job(
        arguments.recipe,
        arguments.run_file,
        arguments.overrides,
        machines,
        arguments.launch_file or default_launch_file(machines),
        read_profile(arguments.profile),
        arguments.array,
    )
    console, notes = Console(soft_wrap=True, highlight=False, markup=False), Console(stderr=True, markup=False)
    for warning in _check_options(job):
        notes.print(warning, soft_wrap=True)
    if arguments.kubernetes:
        _kubernetes(job, arguments.dry_run, console)
    elif arguments.dry_run:
        script = render_sbatch(job)
        console.print(script, end="")
        if has_slurm():
            notes.print(test_script(script), end="")
    elif not has_slurm():
        raise LaunchError(
            "there is no Slurm on this machine. Print the script with --dry-run and submit it on the cluster, or start "
            "the run on every node by hand (docs/cluster.md)"
        )
    else:
        _slurm(job, arguments.wait, console)


def _check_options(job: Job) -> list[str]:
    """The warnings that the recipe would give; raises ArgumentError as it would, before anything waits in a queue."""
    from softlaunch.arguments.parse import check_options

    warnings: dict[str, None] = {}
    for task in job.tasks:
        argv = [job.run_file, *job.words, *task.words]
        warnings |= dict.fromkeys(check_options(argv, **read_settings(argv).reading))
    return list(warnings)


def _slurm(job: Job, waits: bool, console: Console) -> None:
    submitted = submit(job)
    console.print(say("job {job}", job=submitted.job_id))
    for task, log in zip(job.tasks, submitted.logs, strict=True):
        console.print(say("  log {log}, results {output_dir}", log=log, output_dir=task.output_dir))
    console.print(say("how far it is: softlaunch status {dirs}", dirs=" ".join(t.output_dir for t in job.tasks)))
    if waits:
        wait(submitted)


def _kubernetes(job: Job, dry_run: bool, console: Console) -> None:
    manifest = render_pytorchjob(job, time.strftime("%Y-%m-%dT%H:%M:%S"))
    if dry_run:
        console.print(manifest, end="")
        return
    try:
        done = subprocess.run(
            ["kubectl", "apply", "-f", "-"], input=manifest, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise LaunchError(
            "there is no kubectl on this machine; write the manifest with --dry-run and apply it where there is one"
        ) from None
    if done.returncode:
        raise LaunchError("kubectl refuses: {reason}", reason=done.stderr.strip())
    console.print(done.stdout, end="")

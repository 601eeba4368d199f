"""One run on a cluster, as Slurm's script and Kubernetes' manifest are rendered from it."""

import itertools
import os
import shlex
import zlib
from dataclasses import dataclass
from pathlib import Path

from softlaunch.arguments.redact import redact_argv
from softlaunch.errors import LaunchError
from softlaunch.launching.profile import Profile
from softlaunch.launching.settings import read_settings
from softlaunch.launching.strategy import Machines, Strategy, read_strategy

MAX_ARRAY_TASKS = 1000  # Slurm's default limit is 1001


@dataclass(frozen=True)
class Task:
    """What one task of an array adds to the command line, and where it writes."""

    words: tuple[str, ...]
    output_dir: str


@dataclass(frozen=True)
class Job:
    """A recipe with its arguments, on these machines. Paths are relative to the folder that it is submitted from.

    `tasks`: one for a plain job, several for an array.
    """

    recipe: str
    run_file: str
    words: tuple[str, ...]
    machines: Machines
    launch_file: str
    strategy: Strategy
    profile: Profile
    tasks: tuple[Task, ...]

    @property
    def name(self) -> str:
        """Of ASCII letters, digits and `-`, as Slurm and Kubernetes take them; a number tells apart what is lost."""
        text = f"{Path(self.recipe).stem}-{Path(self.run_file).stem}"
        name = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in text)
        return name if text.isascii() else f"{name.strip('-') or 'run'}-{zlib.crc32(text.encode()):08x}"

    @property
    def is_array(self) -> bool:
        return len(self.tasks) > 1

    @property
    def is_launched(self) -> bool:
        """Whether a launcher starts the processes; DeepSpeed and FSDP are its doing for a single one too."""
        return self.machines.num_processes > 1 or self.strategy.uses_deepspeed or self.strategy.fsdp

    @property
    def run_words(self) -> list[str]:
        """Recipe, argument file and options."""
        return [self.recipe, self.run_file, *self.words]

    @property
    def launcher_words(self) -> list[str]:
        """`accelerate launch` without the address of the first node, and without the recipe.

        One process alone needs no launcher, and the one for it would not hand signals on.
        """
        if not self.is_launched:
            return ["python"]
        words = ["accelerate", "launch", "--config_file", self.launch_file]
        words += ["--num_machines", str(self.machines.num_nodes), "--num_processes", str(self.machines.num_processes)]
        if self.machines.num_nodes > 1:
            # c10d numbers the nodes by itself. The rank only decides who looks first whether the port is taken: nobody
            words += ["--rdzv_backend", "c10d", "--machine_rank", "1"]
            if self.strategy.uses_deepspeed:
                words += ["--deepspeed_multinode_launcher", "standard"]
        return words


def make_job(
    recipe: str,
    run_file: str,
    words: list[str],
    machines: Machines,
    launch_file: str,
    profile: Profile,
    arrays: list[str],
) -> Job:
    """Reads and checks what the job is made of.

    `words`: options behind the argument file. `arrays`: `option=value,value`, crossed when there are several.
    Raises LaunchError and ArgumentError for what does not exist, lies elsewhere, or would put a secret into the script.
    """
    shown = [*words, *(f"--{text.removeprefix('--')}" for text in arrays)]
    if redact_argv(shown) != shown:
        raise LaunchError(
            "a job script is readable for others and must hold no secret; leave the token out of the command line: "
            "`hf auth login` stores it, or your shell's HF_TOKEN goes along with the job"
        )
    for file in (recipe, run_file, launch_file):
        if not Path(file).is_file():
            raise LaunchError("{file}: there is no such file (looked from {folder})", file=file, folder=Path.cwd())
    settings = read_settings([run_file, *words])
    if not settings.output_dir:
        raise LaunchError("output_dir is missing: the directory that the run writes to, on a disk that all nodes share")
    return Job(
        recipe=_from_here(recipe),
        run_file=_from_here(run_file),
        words=tuple(words),
        machines=machines,
        launch_file=_from_here(launch_file),
        strategy=read_strategy(launch_file),
        profile=profile,
        tasks=_tasks(settings.output_dir, arrays),
    )


def _from_here(path: str) -> str:
    """A script with absolute paths is of no use to anybody else."""
    here, absolute = Path.cwd(), Path(os.path.abspath(path))  # noqa: PTH100 - links to other disks may stay
    if not absolute.is_relative_to(here):
        raise LaunchError(
            "{file} lies outside of {folder}: submit from the folder that holds the recipe, the argument file and the "
            "launch file, on a disk that all nodes share",
            file=path,
            folder=here,
        )
    return str(absolute.relative_to(here))


def _tasks(output_dir: str, arrays: list[str]) -> tuple[Task, ...]:
    if not arrays:
        return (Task((), output_dir),)
    axes = []
    for text in arrays:
        name, equals, values = text.partition("=")
        name = name.removeprefix("--").replace("-", "_")
        if not equals or not name.isidentifier() or not all(values.split(",")):
            raise LaunchError("--array {text}: write option=value,value, as in learning_rate=1e-3,1e-2", text=text)
        axes.append([(name, value) for value in values.split(",")])
    tasks = []
    for combination in itertools.product(*axes):
        where = str(Path(output_dir, *(f"{name}={value}".replace("/", "_") for name, value in combination)))
        words = [word for name, value in combination for word in (f"--{name}", value)]
        tasks.append(Task((*words, "--output_dir", where), where))
    if len({task.output_dir for task in tasks}) < len(tasks) or len(tasks) > MAX_ARRAY_TASKS:
        raise LaunchError(
            "--array makes {number} tasks; there may be {most}, each with values of its own",
            number=len(tasks),
            most=MAX_ARRAY_TASKS,
        )
    return tuple(tasks)


def quoted(words: list[str] | tuple[str, ...]) -> str:
    """As one line of shell."""
    return shlex.join(words)

"""The record of a run: everything needed to tell what was run, with what, and where, in `record.json`."""

import dataclasses
import math
import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from enum import Enum
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from softlaunch.arguments import Arguments
from softlaunch.arguments.redact import redact, redact_argv
from softlaunch.errors import ArgumentError
from softlaunch.files import read_json_object, write_json
from softlaunch.run_directory import RECORD_FILE

_PACKAGES = (
    "softlaunch",
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "datasets",
    "deepspeed",
    "bitsandbytes",
    "flash-attn",
    "safetensors",
    "sentencepiece",
    "tokenizers",
    "jieba",
    "nltk",
    "rouge-chinese",
    "scikit-learn",
    "matplotlib",
)
GROUPS = ("model", "tuning", "data", "classification", "training")
_GIT_TIMEOUT_S = 10
_GIB = 1024**3


def write_record(arguments: Arguments, output_dir: str | os.PathLike[str]) -> Path:
    """Writes `record.json` into `output_dir`, which is made if need be, and returns its path.

    It holds the resolved arguments and where each came from, the warnings, the command line, versions, git commit,
    hardware, and the times of this start and of those before it since the run began, without secrets. An earlier record
    is replaced as a whole or, on an error, kept. Call it on the first process alone
    (`arguments.training.process_index == 0`).

    Raises:
        ArgumentError: the directory cannot be made or written.
    """
    path = Path(output_dir) / RECORD_FILE
    record = collect_record(arguments)
    earlier = [] if arguments.training.restart else _earlier_starts(path)
    record["starts"] = [*earlier, record["started"]]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, record)
    except OSError as error:
        raise ArgumentError(
            "output_dir {output_dir} cannot be written: {strerror}; name a directory that you may write to",
            output_dir=output_dir,
            strerror=error.strerror,
        ) from error
    return path


def _earlier_starts(path: Path) -> list[str]:
    starts = read_json_object(path).get("starts")
    return starts if isinstance(starts, list) else []


def collect_record(arguments: Arguments) -> dict[str, Any]:
    """What `write_record` writes: JSON types only, secrets replaced by `<hidden>`."""
    training = arguments.training
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command_line": [sys.argv[0], *redact_argv(arguments.argv)],
        "arguments": redact(arguments_as_json(arguments)),
        "sources": dict(arguments.sources),
        "warnings": redact(arguments.warnings),
        "versions": {"python": platform.python_version(), **_package_versions()},
        "git": _git_state(Path(__file__).parent),
        "hardware": _hardware(),
        "world_size": training.world_size,
        "device": str(training.device),
        "mixed_precision": training.mixed_precision,
    }


def arguments_as_json(arguments: Arguments) -> dict[str, dict[str, Any]]:
    """The options of all groups with their values as JSON types; it may hold secrets."""
    return {name: _fields_as_json(getattr(arguments, name)) for name in GROUPS}


def _fields_as_json(group: Any) -> dict[str, Any]:
    return {field.name: _as_json(getattr(group, field.name)) for field in dataclasses.fields(group) if field.init}


def _as_json(value: Any) -> Any:
    if isinstance(value, Enum):
        return _as_json(value.value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, dict):
        return {str(key): _as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_as_json(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _fields_as_json(value)
    return str(value)


def _package_versions() -> dict[str, str | None]:
    """Versions of the packages that decide what a run computes; None for one that is not installed."""
    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def _git_state(directory: Path) -> dict[str, Any] | None:
    """Commit of the checkout that `directory` is tracked in, and whether it differs; None outside of a checkout.

    A package installed into an environment that happens to lie in somebody's checkout is not tracked there.
    """

    def git(*command: str) -> str:
        return subprocess.run(
            ["git", "-C", str(directory), *command],
            capture_output=True,
            text=True,
            check=True,
            timeout=_GIT_TIMEOUT_S,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},  # only look: never write the index
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None


def _hardware() -> dict[str, Any]:
    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return {
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cpu_cores": os.cpu_count(),
        "memory_gib": _memory_gib(),
        "gpus": [{"name": gpu.name, "memory_gib": round(gpu.total_memory / _GIB, 1)} for gpu in gpus],
    }


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB, 1)
    except (AttributeError, ValueError, OSError):  # not on every system
        return None

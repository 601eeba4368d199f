"""What can be known of a machine and a run before it starts, without torch: disk, GPUs, ports."""

import os
import shutil
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

from softlaunch.errors import LaunchError
from softlaunch.launching.memory import GIB
from softlaunch.messages import say

FINE, WARNING, PROBLEM = "fine", "warning", "problem"
_NVIDIA_SMI_TIMEOUT_S = 30


@dataclass(frozen=True)
class Finding:
    """One line of the list: what was looked at, and what was found."""

    level: str
    what: str
    detail: str


def check_disk(output_dir: str | Path, needed_bytes: int) -> Finding:
    """Free space where the run will write, against what its checkpoints need."""
    free = free_bytes(output_dir)
    facts = {"needed": needed_bytes / GIB, "free": free / GIB, "place": output_dir}
    if free < needed_bytes:
        detail = say(
            "checkpoints need {needed:.1f} GiB and {place} has {free:.1f} free: lower save_total_limit, or write "
            "elsewhere",
            **facts,
        )
        return Finding(PROBLEM, say("disk"), detail)
    return Finding(FINE, say("disk"), say("{needed:.1f} GiB needed, {free:.1f} free in {place}", **facts))


def require_disk(output_dir: str | Path, needed_bytes: int) -> None:
    """Raises LaunchError when there is too little."""
    found = check_disk(output_dir, needed_bytes)
    if found.level == PROBLEM:
        raise LaunchError("{what}: {detail}", what=found.what, detail=found.detail)


def free_bytes(path: str | Path) -> int:
    """In the nearest directory that exists, for this user."""
    existing = next(p for p in (Path(path), *Path(path).absolute().parents) if p.exists())
    return shutil.disk_usage(existing).free


def gpu_memories_gib() -> list[float]:
    """Of every GPU that nvidia-smi lists; empty where there is none."""
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True, timeout=_NVIDIA_SMI_TIMEOUT_S)
        return [float(line) / 1024 for line in done.stdout.split()]
    except (OSError, subprocess.SubprocessError, ValueError):
        return []


def check_gpus(wanted: int, found: list[float]) -> Finding:
    """As many GPUs on this machine as every node is to have; those hidden by CUDA_VISIBLE_DEVICES do not count."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    number = (
        len(found) if visible is None else min(len(found), len([word for word in visible.split(",") if word.strip()]))
    )
    memory = f", {min(found):.0f} GiB" if found else ""
    if number < wanted:
        detail = say("{wanted} wanted, {number} visible on this machine", wanted=wanted, number=number)
        return Finding(PROBLEM if found else WARNING, say("GPUs"), detail)
    return Finding(FINE, say("GPUs"), say("{number} visible{memory}", number=number, memory=memory))


def check_port(port: int) -> Finding:
    """Whether the processes can meet at this port of this machine."""
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("", port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            detail = say("port {port} cannot be used: {error}", port=port, error=reason)
            return Finding(PROBLEM, say("port"), detail)
    return Finding(FINE, say("port"), say("port {port} is free", port=port))

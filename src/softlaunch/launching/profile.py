"""What a cluster asks of its jobs: partition, account, modules, environment, …, from a JSON file."""

import dataclasses
import difflib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from softlaunch.arguments.redact import redact
from softlaunch.errors import LaunchError
from softlaunch.messages import say

_ASSIGNMENT = re.compile(r"""(\w+)=["']?([^\s"'$]+)""")  # of a value, not of what another variable holds


@dataclass(frozen=True)
class Profile:
    """A cluster's facts. What is None or empty is left to the cluster.

    `gpu_request`: how GPUs are asked for, `{gpus}` per node; empty where there are none to ask for. `setup`: lines of
    shell in front of the run, as `. .venv/bin/activate`. `save_time_s`: what a run is given to save itself when it is
    asked to end. `image`, `namespace` and `volume_claim` are for Kubernetes.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    time_limit: str = "24:00:00"
    cpus_per_node: int | None = None
    memory_per_node: str | None = None
    gpu_request: str = "--gpus-per-node={gpus}"
    exclusive: bool = False
    options: list[str] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    setup: list[str] = field(default_factory=list)
    log_dir: str = "logs"
    save_time_s: int = 120
    max_requeues: int = 20
    image: str = "softlaunch:latest"
    namespace: str = "default"
    volume_claim: str = "softlaunch"


def read_profile(path: str | None) -> Profile:
    """The profile in a JSON file, or the defaults for None.

    Raises LaunchError, with all problems, for unknown keys, values that cannot be used, and secrets.
    """
    if path is None:
        return Profile()
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise LaunchError("{file}: the profile cannot be read ({error})", file=path, error=error.strerror) from None
    except ValueError as error:
        raise LaunchError("{file}: the profile is no valid JSON: {error}", file=path, error=error) from None
    if not isinstance(values, dict):
        raise LaunchError("{file}: a profile holds one JSON object", file=path)
    problems = [problem for name, value in values.items() for problem in _problems(name, value)]
    if problems:
        raise LaunchError("\n".join([say("{file}: the profile cannot be used:", file=path), *problems]))
    return Profile(**values)


def _problems(name: str, value: Any) -> list[str]:
    hints = get_type_hints(Profile)
    if name not in hints:
        near = difflib.get_close_matches(name, hints, n=1)
        known = near or [f.name for f in dataclasses.fields(Profile)]
        return [say("  {name}: there is no such key; did you mean {known}?", name=name, known=", ".join(known))]
    if not _is_a(value, hints[name]):
        return [say("  {name}: {value!r} is not of the type {kind}", name=name, value=value, kind=_kind(hints[name]))]
    if _holds_secret(value):
        return [
            say(
                "  {name}: it holds a secret, and job scripts are readable for others; set it in your shell, whose "
                "environment sbatch takes along",
                name=name,
            )
        ]
    if name in ("save_time_s", "max_requeues") and value < 0:
        return [say("  {name}: {value} is negative", name=name, value=value)]
    if name == "environment":
        wrong = [key for key in value if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key)]
        return [say("  {name}: {key!r} is no name of an environment variable", name=name, key=key) for key in wrong]
    if name == "gpu_request" and re.search(r"[{}]", value.replace("{gpus}", "")):
        return [say("  {name}: {value!r} may hold {place} and no other braces", name=name, value=value, place="{gpus}")]
    return []


def _holds_secret(value: Any) -> bool:
    """In what a profile sets, and in its lines of shell and of options."""
    if isinstance(value, dict):
        return redact(value) != value
    lines = value if isinstance(value, list) else [value]
    assigned = [found for line in lines if isinstance(line, str) for found in _ASSIGNMENT.findall(line)]
    return redact(lines) != lines or any(redact(text, name) != text for name, text in assigned)


def _is_a(value: Any, hint: Any) -> bool:
    if hint == list[str]:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    if hint == dict[str, str]:
        return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _kind(hint: Any) -> str:
    return getattr(hint, "__name__", str(hint)) if not getattr(hint, "__args__", None) else str(hint)

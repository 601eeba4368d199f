"""`manifest.json`: size and SHA-256 of every file of a checkpoint, written last. Without it a checkpoint is none."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from softlaunch.files import flush, is_inside, read_json_object, sha256, write_json
from softlaunch.messages import say
from softlaunch.run_directory import MANIFEST_FILE

_VERSION = 1
_NUM_THREADS = 4  # hashing leaves the interpreter free
# Of each one has to be there, whatever the manifest says; the first names it. DeepSpeed has a folder for most of them
_NEEDED = (("trainer_state.json",), ("*.safetensors", "global_step*/*"))
_NEEDED_STATES = (("optimizer.pt", "optimizer*", "global_step*/*"), ("scheduler.pt", "global_step*/*"), ("rng_state*",))


def write_manifest(directory: Path, facts: dict[str, Any]) -> None:
    """List the files of `directory` in its manifest, beside `facts`, and flush both to the disk. Raises OSError.

    `only_model` among the facts: no states of optimizer, schedule and random numbers were saved, as was asked for.
    """
    names = sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        entries = pool.map(lambda name: _entry(directory / name), names)
        files = dict(zip(names, entries, strict=True))
    write_json(directory / MANIFEST_FILE, {"version": _VERSION, **facts, "files": files})
    flush(directory)


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a checkpoint; an empty dictionary when there is none, or none that can be read."""
    return read_json_object(directory / MANIFEST_FILE)


def problem(directory: Path) -> str | None:
    """Why a checkpoint must not be used, None when every file is as its manifest says. It reads all of them."""
    manifest = read_manifest(directory)
    if not manifest:
        return say("it has no readable {file}: it was not written to the end", file=MANIFEST_FILE)
    if manifest.get("version") != _VERSION or not isinstance(manifest.get("files"), dict):
        return say("its {file} is of another kind", file=MANIFEST_FILE)
    files: dict[str, Any] = manifest["files"]
    for patterns in (*_NEEDED, *(() if manifest.get("only_model") is True else _NEEDED_STATES)):
        if not any(fnmatch(name, pattern) for name in files for pattern in patterns):
            return say("{name} is missing", name=patterns[0])
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        return _first(pool.map(lambda item: _file_problem(directory, *item), files.items()))


def _first(problems: Iterable[str | None]) -> str | None:
    return next((problem for problem in problems if problem), None)


def _entry(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": sha256(path)}


def _file_problem(directory: Path, name: str, entry: Any) -> str | None:
    if not isinstance(entry, dict) or not is_inside(name):
        return say("its {file} is of another kind", file=MANIFEST_FILE)
    path = directory / name
    if not path.is_file():
        return say("{name} is missing", name=name)
    size = path.stat().st_size
    if size != entry.get("size"):
        return say("{name} has {size} bytes instead of {expected}", name=name, size=size, expected=entry.get("size"))
    if sha256(path) != entry.get("sha256"):
        return say("the content of {name} is not what was written", name=name)
    return None

"""Whether the weight files of a local checkpoint are there and whole, told from indexes, headers and sizes alone."""

import json
import zipfile
from pathlib import Path

from softlaunch.errors import CheckpointError
from softlaunch.files import is_inside, read_safetensors_header
from softlaunch.messages import say

# Where transformers looks for weights, in this order: each of them, and the index of such a file in parts
SINGLE_FILE = "model.safetensors"
INDEX_FILE = f"{SINGLE_FILE}.index.json"
_SINGLE_FILES = (SINGLE_FILE, "pytorch_model.bin")
_LFS_POINTER = b"version https://git-lfs"
_TORCH_BEFORE_ZIP = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # files of torch < 1.6; nothing tells their size


def check_weight_files(directory: Path) -> set[str]:
    """The names of the tensors, as far as an index or a header lists them.

    Raises CheckpointError when there are no weights, and one that lists all files that are missing, cut off, or only
    pointers that Git LFS left.
    """
    files, names = find_weight_files(directory)
    problems = []
    for file in files:
        try:
            names |= _tensor_names(file)
        except _DamagedError as error:
            problems.append(f"  {error}")
    if problems:
        title = say(
            "{path}: {bad} of {all} weight files cannot be used:", path=directory, bad=len(problems), all=len(files)
        )
        advice = say("Fetch them again, for example with: hf download MODEL --local-dir {path}", path=directory)
        raise CheckpointError("\n".join([title, *problems, advice]))
    return names


class _DamagedError(Exception):
    """What is wrong with one file."""


def find_weight_files(directory: Path) -> tuple[list[Path], set[str]]:
    """The files that hold the weights, sorted, and the names that their index lists, if there is one.

    Raises CheckpointError when there are none; whether all are there and whole tells `check_weight_files`.
    """
    for single in _SINGLE_FILES:
        if (directory / single).is_file():
            return [directory / single], set()
        index = directory / f"{single}.index.json"
        if index.is_file():
            weight_map = read_index(index)
            return [directory / name for name in sorted(set(weight_map.values()))], set(weight_map)
    raise CheckpointError(
        "{path}: there are no weights here: neither {first} nor {second}, nor the index of such a file in parts. Fetch "
        "them, for example with: hf download MODEL --local-dir {path}",
        path=directory,
        first=_SINGLE_FILES[0],
        second=_SINGLE_FILES[1],
    )


def read_index(file: Path) -> dict[str, str]:
    """Tensor name → file name, of an index of weight files; raises CheckpointError when it is none."""
    try:
        weight_map = json.loads(file.read_text(encoding="utf-8"))["weight_map"]
        names = {str(name) for name in weight_map.values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            "{file}: this is no index of weight files ({error!r}); fetch the file again", file=file, error=error
        ) from error
    outside = sorted(name for name in names if not is_inside(name))
    if outside:
        raise CheckpointError(
            "{file}: it names files outside of its directory ({names}); do not use this checkpoint",
            file=file,
            names=", ".join(outside[:3]),
        )
    return weight_map


def check_indexes(directory: Path) -> None:
    """Raises CheckpointError when an index in `directory` names files elsewhere."""
    for file in directory.glob("*.index.json"):
        read_index(file)


def _tensor_names(file: Path) -> set[str]:
    if not file.is_file():
        raise _DamagedError(say("{file} is missing", file=file.name))
    with file.open("rb") as opened:
        start = opened.read(len(_LFS_POINTER))
    if start == _LFS_POINTER:
        raise _DamagedError(say("{file} is a Git LFS pointer, not the file itself: run git lfs pull", file=file.name))
    if file.suffix == ".safetensors":
        return _safetensors_names(file)
    if not start.startswith(_TORCH_BEFORE_ZIP) and not zipfile.is_zipfile(file):  # its directory stands at the end
        raise _DamagedError(say("{file} is cut off, or no file that torch.save wrote", file=file.name))
    return set()


def _safetensors_names(file: Path) -> set[str]:
    size = file.stat().st_size
    try:
        header, expected = read_safetensors_header(file)
    except ValueError:
        raise _DamagedError(
            say("{file} is cut off in its header, or no safetensors file ({size:,} bytes)", file=file.name, size=size)
        ) from None
    if size != expected:
        raise _DamagedError(
            say("{file} is cut off: {size:,} of {expected:,} bytes", file=file.name, size=size, expected=expected)
        )
    return set(header)

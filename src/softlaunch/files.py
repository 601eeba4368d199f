"""Files that are whole or not there: written aside, flushed to the disk, then renamed."""

import hashlib
import json
import os
from pathlib import Path, PurePosixPath
from typing import Any

_BLOCK = 1 << 20
_MAX_HEADER_BYTES = 100_000_000  # that of safetensors


def write_json(path: Path, content: Any) -> None:
    """Put a complete JSON file in the place of `path`, or leave what is there and raise OSError."""
    write_text(path, json.dumps(content, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Put a complete file in the place of `path`, or leave what is there and raise OSError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):  # a full disk names none
            error.filename = str(path)
        raise


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one when there is no such file, or none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects in a JSON-lines file, without lines that a kill cut off; none when it cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    objects = []
    for line in lines:
        try:
            objects.append(json.loads(line))
        except (ValueError, RecursionError):
            continue
    return [value for value in objects if isinstance(value, dict)]


def read_safetensors_header(path: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """What the header of a safetensors file says of each tensor (`shape`, …), and how many bytes the file has by it.

    As https://huggingface.co/docs/safetensors has it: the header's length, the header, and then the tensors. Raises
    ValueError when the header is cut off, or there is none; OSError when the file cannot be read.
    """
    with path.open("rb") as file:
        start, content = file.read(8), b""
        length = int.from_bytes(start, "little")
        if len(start) == 8 and length <= _MAX_HEADER_BYTES:
            content = file.read(length)
    try:
        header = json.loads(content)
        header.pop("__metadata__", None)
        return header, 8 + length + max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"no header of a safetensors file: {error}") from error


def flush(path: Path) -> None:
    """Make a file, or a folder's list of names, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_tree(directory: Path) -> None:
    """`flush` for everything in a folder and the folder itself."""
    for path in (*directory.rglob("*"), directory):
        flush(path)


def sha256(path: Path) -> str:
    """The hexadecimal SHA-256 of a file's content, as `sha256sum` prints it."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def is_inside(name: str) -> bool:
    """Whether a relative path stays in the folder that it is given for."""
    path = PurePosixPath(name)
    return bool(name) and not path.is_absolute() and ".." not in path.parts and "\0" not in name and "\\" not in name

"""The tensors of a model directory without reading them: names and shapes from the headers, data mapped on demand."""

import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from softlaunch.errors import CheckpointError
from softlaunch.models.weight_files import read_index

INDEX_FILE, SINGLE_FILE = "model.safetensors.index.json", "model.safetensors"
_KINDS = ((INDEX_FILE, SINGLE_FILE), ("pytorch_model.bin.index.json", "pytorch_model.bin"))
_UNREADABLE = (OSError, RuntimeError, ValueError, EOFError, SafetensorError, pickle.UnpicklingError)


class TensorFile(Mapping[str, torch.Tensor]):
    """The tensors of one safetensors or `.bin` file by name, on the CPU.

    They point into the mapped file; nothing is read before it is used. A `.bin` of the format before torch 1.6 cannot
    be mapped and is read as a whole. Raises CheckpointError for a damaged file.
    """

    def __init__(self, file: Path):
        self.file = file
        try:
            if file.suffix == ".safetensors":
                self._safetensors = opened = safe_open(file, framework="pt")
                self.shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in list(opened.keys())}
            else:
                can_map = zipfile.is_zipfile(file)
                self._loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=can_map)
                self.shapes = {name: tuple(tensor.shape) for name, tensor in self._loaded.items()}
        except _UNREADABLE as error:
            raise CheckpointError(
                "{file} cannot be read: {error}. It is cut off or damaged; fetch it again", file=file, error=error
            ) from error

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._safetensors.get_tensor(name) if self.file.suffix == ".safetensors" else self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def weight_files(directory: Path) -> list[Path]:
    """The files that hold the weights of the model in `directory`, sorted; safetensors if there are both kinds.

    Raises CheckpointError when there are none, and when the index names one that is missing.
    """
    for index, single in _KINDS:
        if (directory / index).is_file():
            files = sorted({directory / name for name in read_index(directory / index).values()})
            missing = [file.name for file in files if not file.is_file()]
            if not missing:
                return files
            raise CheckpointError(
                "{path}: {number} of the {total} files that {index} names are missing: {missing}",
                path=directory,
                number=len(missing),
                total=len(files),
                index=index,
                missing=", ".join(missing[:5]),
            )
        if (directory / single).is_file():
            return [directory / single]
    raise CheckpointError(
        "{path}: there are no weights here; expected is {single}, or {index} and the files that it names, or the same "
        "as pytorch_model.bin",
        path=directory,
        single=SINGLE_FILE,
        index=INDEX_FILE,
    )

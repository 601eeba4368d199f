"""The tensors of a model directory without reading them: names and shapes from the headers, data mapped on demand."""

import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from softlaunch.errors import CheckpointError

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

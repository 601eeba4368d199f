"""Adapter files that anybody may have written, and the errors that reading them may end in."""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from softlaunch.errors import CheckpointError, UserError

# Values of another type or size than the code expects turn up wherever they are used first
_ERRORS = (ArithmeticError, AttributeError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError)


@contextmanager
def cannot_be_read(directory: str | Path) -> Iterator[None]:
    """Inside, whatever the files of an adapter make the code raise is a CheckpointError."""
    try:
        yield
    except UserError:
        raise
    except pickle.UnpicklingError as error:  # torch's own message advises to load it nonetheless
        raise CheckpointError(
            "{directory}: a file of the adapter holds more than tensors and plain values, and is not read",
            directory=directory,
        ) from error
    except (*_ERRORS, SafetensorError) as error:
        raise CheckpointError(
            "{directory}: the adapter cannot be read: {error}", directory=directory, error=str(error) or repr(error)
        ) from error

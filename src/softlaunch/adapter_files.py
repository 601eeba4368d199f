"""What lies in adapter directories, from their small files and the headers of the large ones alone: no torch."""

import json
import pickletools
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from softlaunch.errors import CheckpointError
from softlaunch.messages import say
from softlaunch.run_directory import CONFIG_FILE, ORIGINAL_FILE, base_of, read_json, read_record

WEIGHTS_FILE = "adapter_model.safetensors"

_MAX_DEPTH = 5
_SCORES = {"rouge-l": "predict_rouge-l", "bleu-4": "predict_bleu-4", "eval loss": "eval_loss"}
_STORAGE_BYTES = {"FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2}


@dataclass
class AdapterFiles:
    """One adapter directory. `damage` says what is wrong with it; then the fields that could not be told are None."""

    path: Path
    method: str | None = None
    base: str | None = None
    num_parameters: int | None = None
    num_bytes: int | None = None
    steps: int | None = None
    scores: dict[str, float] | None = None
    damage: str | None = None

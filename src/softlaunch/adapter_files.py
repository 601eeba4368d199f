"""What lies in directories of adapters and tuned models, from their small files and the headers of the large ones: no
torch.
"""

import os
import pickletools
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from softlaunch.arguments.defaults import NUM_TRAINED_LAYERS
from softlaunch.errors import CheckpointError
from softlaunch.files import read_json_lines, read_safetensors_header
from softlaunch.messages import say
from softlaunch.run_directory import (
    BASE_FILE,
    CONFIG_FILE,
    MAIN_SCORES,
    MERGE_FILE,
    METRICS_FILE,
    ORIGINAL_FILE,
    RECORD_FILE,
    WEIGHTS_FILE,
    read_json,
    read_record,
    trains_last_layers,
)

_MAX_DEPTH = 5
_NAMES = {
    "P_TUNING_V2": "P-Tuning v2",
    "PREFIX_TUNING": "PEFT prefix tuning",
    "LORA": "LoRA",
    "IA3": "IA3",
    "PROMPT_TUNING": "prompt tuning",
    "P_TUNING": "P-tuning v1",
}
_STORAGE_BYTES = {"FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2}


@dataclass
class AdapterFiles:
    """One directory with an adapter or a tuned model; None for what could not be told. `damage` says what is wrong.

    `scores`: those of its run's test rows (`loss` of the validation rows); of a checkpoint, those of the evaluation at
    its step.
    """

    path: Path
    method: str | None = None
    base: str | None = None
    num_parameters: int | None = None
    num_bytes: int | None = None
    steps: int | None = None
    scores: dict[str, float] = field(default_factory=dict)
    damage: str | None = None


def find_adapters(directory: Path) -> Iterator[AdapterFiles]:
    """The adapters in `directory` and up to five levels below, by path; hidden directories are left out. Whole models
    are among them where a run has tuned them, or an adapter was merged into them.

    Raises CheckpointError when there is no such directory.
    """
    if not directory.is_dir():
        raise CheckpointError("{path}: no such directory", path=directory)
    for root, folders, files in os.walk(directory):
        path = Path(root)
        deep = len(path.relative_to(directory).parts) >= _MAX_DEPTH
        folders[:] = [] if deep else sorted(name for name in folders if not name.startswith("."))
        if CONFIG_FILE in files or WEIGHTS_FILE in files:
            yield look_at(path)
        elif "config.json" in files and (method := _whole_model(path, files)):
            yield look_at_model(path, method)
        elif ORIGINAL_FILE in files and (numbers := _original(path / ORIGINAL_FILE)):
            yield AdapterFiles(path, say("P-Tuning v2 (original)"), None, *numbers)


def look_at(path: Path) -> AdapterFiles:
    """What the adapter directory `path` holds."""
    found = AdapterFiles(path)
    with _noting_damage(found):
        config, record = read_json(path / CONFIG_FILE), read_record(path).get("arguments", {})
        found.method = _method(config, record.get("model", {}).get("quantization_bit"))
        found.base = config.get("base_model_name_or_path") or record.get("model", {}).get("model_name_or_path")
        found.steps, found.scores = _results(path)
        found.num_parameters = _num_parameters(path / WEIGHTS_FILE)
        files = (path / name for name in (CONFIG_FILE, WEIGHTS_FILE, BASE_FILE))
        found.num_bytes = sum(file.stat().st_size for file in files if file.is_file())
    return found


def look_at_model(path: Path, method: str) -> AdapterFiles:
    """What the directory `path` holds, a model in safetensors files that `method` has made."""
    found = AdapterFiles(path, method)
    with _noting_damage(found):
        merged = read_json(path / MERGE_FILE) if (path / MERGE_FILE).is_file() else {}
        recorded = read_record(path).get("arguments", {}).get("model", {}).get("model_name_or_path")
        found.base = merged.get("base") or recorded
        found.steps, found.scores = _results(path)
        weights = sorted(path.glob("*.safetensors"))
        found.num_parameters = sum(map(_num_parameters, weights))
        found.num_bytes = sum(file.stat().st_size for file in weights)
    return found


@contextmanager
def _noting_damage(found: AdapterFiles) -> Iterator[None]:
    """What stops the look at its files is noted as `damage`; values of other types than ours are such."""
    try:
        yield
    except CheckpointError as error:
        found.damage = str(error)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        found.damage = say("its files are not those of an adapter: {error}", error=error)


def _whole_model(path: Path, files: list[str]) -> str | None:
    """How the model in `path` was made; None where no model is, or one that no run has tuned: a base."""
    if not any(name.endswith(".safetensors") for name in files):
        return None
    if MERGE_FILE in files:
        return say("merged")
    try:
        tuning = read_record(path).get("arguments", {}).get("tuning")
    except CheckpointError:
        return None
    if tuning is None:
        return None
    if not trains_last_layers(tuning):
        return say("full fine-tuning")
    return say("last {number} layers", number=tuning.get("freeze_trainable_layers") or NUM_TRAINED_LAYERS)


def _method(config: dict[str, Any], quantization_bit: int | None) -> str:
    kind = str(config.get("peft_type"))
    name = "DoRA" if config.get("use_dora") else _NAMES.get(kind, kind)
    details = []
    if kind == "LORA":
        details.append(f"r {config.get('r')}")
    if "num_virtual_tokens" in config:
        details.append(say("{number} tokens", number=config["num_virtual_tokens"]))
    if config.get("prefix_projection"):
        details.append(say("projection"))
    if quantization_bit is not None:
        details.append(say("{bits}-bit base", bits=quantization_bit))
    return ", ".join([name, *details])


def _num_parameters(file: Path) -> int:
    """From the header of a safetensors file. Raises CheckpointError when it is missing, cut off or of another kind."""
    if not file.is_file():
        raise CheckpointError("{file} is missing", file=file.name)
    try:
        tensors, num_bytes = read_safetensors_header(file)
        if file.stat().st_size != num_bytes:
            raise ValueError
        return sum(prod(tensor["shape"]) for tensor in tensors.values())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError("{file} is cut off or damaged", file=file.name) from error


def _original(file: Path) -> tuple[int | None, int] | None:
    """(parameters, bytes) of the prefix that the original scripts saved; None for a file of another kind."""
    try:
        with zipfile.ZipFile(file) as archive:
            (pickled,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
            words = {argument for _, argument, _ in pickletools.genops(archive.read(pickled))}
            num_bytes = sum(entry.file_size for entry in archive.infolist() if "/data/" in entry.filename)
    except (OSError, ValueError, zipfile.BadZipFile):
        return None
    texts = {word for word in words if isinstance(word, str)}
    if not any("prefix_encoder" in text for text in texts):
        return None
    sizes = {size for name, size in _STORAGE_BYTES.items() if f"torch {name}" in texts}
    return num_bytes // sizes.pop() if len(sizes) == 1 else None, file.stat().st_size


def _results(path: Path) -> tuple[int | None, dict[str, float]]:
    state = path / "trainer_state.json"
    if state.is_file():  # a checkpoint
        content = read_json(state)
        steps = content.get("global_step")
        logged = [entry for entry in content.get("log_history", []) if entry.get("step") == steps]
        values = {key: value for entry in logged for key, value in entry.items()}
        return steps, _scores({name: values.get(f"eval_{name}") for name in MAIN_SCORES})
    run = path.parent
    if not (run / RECORD_FILE).is_file():
        return None, {}
    results = {
        name: read_json(run / name) for name in ("predict_results.json", "eval_results.json") if (run / name).is_file()
    }
    predicted, evaluated = results.get("predict_results.json", {}), results.get("eval_results.json", {})
    found = {name: predicted.get(f"predict_{name}") for name in MAIN_SCORES}
    return _last_step(run / METRICS_FILE), _scores({**found, "loss": evaluated.get("eval_loss")})


def _scores(found: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in found.items() if value is not None}


def _last_step(metrics: Path) -> int | None:
    steps = [record.get("step") for record in read_json_lines(metrics)]
    return max((step for step in steps if isinstance(step, int)), default=None)

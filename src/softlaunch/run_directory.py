"""The names of what a run leaves, and finding one's way there, without importing anything heavy."""

import json
from pathlib import Path
from typing import Any

from softlaunch.errors import CheckpointError

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
BASE_FILE = "softlaunch.json"  # the fingerprint of the base, where PEFT's config has no place for it
ORIGINAL_FILE = "pytorch_model.bin"  # a prefix that the original scripts have saved
RECORD_FILE = "record.json"
MERGE_FILE = "merge.json"  # left beside a model by `softlaunch merge`
RUN_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"
MANIFEST_FILE = "manifest.json"  # of a checkpoint, written last
PREDICTIONS_FILE = "predictions.jsonl"
MARKER_FILE = "preempted"  # the run was asked to end, and has saved its work
METHODS_BY_PEFT_TYPE = {  # `peft_type` of an adapter's configuration
    "P_TUNING_V2": "p_tuning_v2",
    "PREFIX_TUNING": "p_tuning_v2",
    "LORA": "lora",
    "IA3": "ia3",
    "PROMPT_TUNING": "prompt_tuning",
    "P_TUNING": "p_tuning",
}
# Scores by which runs are compared, in the order in which they are shown
SCORES = (
    *("accuracy", "f1_macro", "f1_weighted", "precision_macro", "recall_macro"),
    *("rouge-1", "rouge-2", "rouge-l", "bleu-4", "loss"),
)
MAIN_SCORES = ("accuracy", "f1_macro", "rouge-l", "bleu-4", "loss")  # where there is room for a few


def shown_score(name: str, value: float) -> str:
    """Fractions (accuracy, F1) and losses with four digits, scores out of 100 with two."""
    return f"{value:.2f}" if name.startswith(("rouge", "bleu")) else f"{value:.4f}"


def find_adapter(path: Path) -> Path | None:
    """`path` or `adapter/` in it, whichever holds an adapter: one with a configuration first, then the original's."""
    folders = (path, path / "adapter")
    return next((f for name in (CONFIG_FILE, ORIGINAL_FILE) for f in folders if (f / name).is_file()), None)


def checkpoints(output_dir: Path) -> list[Path]:
    """The folders `checkpoint-N` with a manifest, by N: nothing else counts as a checkpoint of a run."""
    found = [p for p in output_dir.glob("checkpoint-*") if p.name.rpartition("-")[2].isdecimal()]
    return sorted((p for p in found if (p / MANIFEST_FILE).is_file()), key=step_of)


def step_of(checkpoint: Path) -> int:
    """The number of optimizer steps that a `checkpoint-N` was saved after."""
    return int(checkpoint.name.rpartition("-")[2])


def adapter_directory(path: Path) -> Path:
    """The adapter at `path`: the directory itself, or `adapter/` in the output directory of a run.

    Raises CheckpointError when there is neither.
    """
    if not path.is_dir():
        raise CheckpointError("{path}: no such directory; give a run's output directory, or an adapter's", path=path)
    found = find_adapter(path)
    if found is not None:
        return found
    if (path / "model" / "config.json").is_file():
        raise CheckpointError(
            "{path}: this run has tuned the whole model, there is no adapter; the model is in {model}",
            path=path,
            model=path / "model",
        )
    names = ", ".join(sorted(entry.name for entry in path.iterdir())[:10]) or "-"
    raise CheckpointError(
        "{path}: no adapter here and none in {path}/adapter; expected is {config}. Found: {found}",
        path=path,
        config=CONFIG_FILE,
        found=names,
    )


def read_record(adapter: Path) -> dict[str, Any]:
    """The `record.json` of the run that an adapter or a checkpoint belongs to, {} when there is none."""
    for directory in (adapter, adapter.parent):
        if (directory / RECORD_FILE).is_file():
            return read_json(directory / RECORD_FILE)
    return {}


def trains_last_layers(tuning: dict[str, Any]) -> bool:
    """Whether the recorded options of a run that has tuned a whole model ask for its last layers alone."""
    return tuning.get("tuning") == "freeze" or tuning.get("freeze_trainable_layers") is not None


def read_json(file: Path) -> dict[str, Any]:
    """The object in `file`. Raises CheckpointError when it is no valid JSON, or another value."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError("{file}: this is not valid JSON ({error})", file=file, error=error) from error
    if not isinstance(content, dict):
        raise CheckpointError("{file}: expected a JSON object", file=file)
    return content


def base_of(adapter: Path) -> str | None:
    """The base model that an adapter was trained on, as its config or its run's record names it."""
    config = read_json(adapter / CONFIG_FILE) if (adapter / CONFIG_FILE).is_file() else {}
    recorded = read_record(adapter).get("arguments", {}).get("model", {}).get("model_name_or_path")
    return config.get("base_model_name_or_path") or recorded

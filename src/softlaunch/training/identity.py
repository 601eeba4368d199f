"""What decides about a run's result: its arguments, its rows and its base model. A resumed run must have the same."""

import hashlib
from pathlib import Path
from typing import Any

from softlaunch.arguments import Arguments
from softlaunch.arguments.redact import redact
from softlaunch.files import sha256
from softlaunch.messages import say
from softlaunch.record import arguments_as_json

_SPLIT = ("per_device_train_batch_size", "gradient_accumulation_steps")
# Options that leave the trained weights as they are: where things are, what is logged, kept and answered
_FREE = {
    *("output_dir", "restart", "resume_from_checkpoint", "do_train", "do_eval", "do_predict", "run_name", "project"),
    *("model_name_or_path", "train_file", "validation_file", "test_file", "class_file"),  # their content is compared
    *("cache_dir", "token", "overwrite_cache", "preprocessing_num_workers", "compare_with_base", "trackio_space_id"),
    *("max_predict_samples", "disable_tqdm", "report_to", "use_cpu", "local_rank", "debug", "deepspeed", "ddp_timeout"),
    *("per_device_eval_batch_size", "eval_accumulation_steps", "torch_empty_cache_steps", "skip_memory_metrics"),
    *("gradient_checkpointing", "gradient_checkpointing_kwargs", "activation_checkpointing", "batch_eval_metrics"),
    *("activation_checkpointing_kwargs", "accelerator_config", "parallelism_config", "logging_nan_inf_filter"),
    *("enable_jit_checkpoint", "restore_callback_states_from_checkpoint", "remove_unused_columns"),
    *_SPLIT,  # compared as their product with the number of processes
}
_FREE_PREFIXES = ("logging_", "log_", "save_", "hub_", "push_to_hub", "dataloader_", "ddp_", "fsdp", "ray_", "eval_on")
_BEST = ("max_eval_samples", "val_max_target_length", "num_beams", "do_sample", "top_p", "temperature", "eval_steps")
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "config.json", "tokenizer*", "*.tiktoken")
_WHOLE_BYTES = 1 << 28  # up to this size a file of the base is read whole, in half a second
_NUM_SAMPLES, _SAMPLE_BYTES = 64, 1 << 16  # of a larger one


def identity(arguments: Arguments) -> dict[str, Any]:
    """JSON that two runs share if, and only if, they train the same. It reads the data files and parts of the base."""
    training = arguments.training
    options = {name: value for group in arguments_as_json(arguments).values() for name, value in group.items()}
    compared = redact({name: value for name, value in options.items() if _counts(name, options)})
    compared["per_device_train_batch_size × gradient_accumulation_steps × processes"] = rows_per_step(arguments)
    compared["ZeRO stage"] = training.deepspeed_plugin.zero_stage if training.deepspeed_plugin else None
    files = {"train_file": _data_digest(arguments.data.train_file)}
    if training.load_best_model_at_end:
        files["validation_file"] = _data_digest(arguments.data.validation_file)
    if arguments.classification.class_file:
        files["class_file"] = _data_digest(arguments.classification.class_file)
    base = Path(arguments.model.model_name_or_path)
    return {
        "arguments": compared,
        "files": files,
        "split": {name: getattr(training, name) for name in _SPLIT},
        "base": {file.name: _digest(file) for file in _base_files(base)} if base.is_dir() else {"name": str(base)},
        "base_times": {file.name: file.stat().st_mtime_ns for file in _base_files(base) if _is_large(file)},
        "world_size": training.world_size,
    }


def rows_per_step(arguments: Arguments) -> int:
    """How many rows an optimizer step sees, over all processes."""
    training = arguments.training
    return training.per_device_train_batch_size * training.gradient_accumulation_steps * training.world_size


def _counts(name: str, options: dict[str, Any]) -> bool:
    if name in _BEST:  # they decide which checkpoint is best
        return bool(options["load_best_model_at_end"])
    return name not in _FREE and not name.startswith(_FREE_PREFIXES)


def differences(earlier: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """One line for each thing that `identity` found otherwise now than earlier."""
    then, current = _section(earlier, "arguments"), now["arguments"]
    changed = [name for name in current if name in then and then[name] != current[name]]
    lines = [
        say("  {name}: {old} → {new}", name=name, old=_shown(then[name]), new=_shown(current[name])) for name in changed
    ]
    then, current = _section(earlier, "files"), now["files"]
    for name, digest in current.items():
        if name in then and then[name] != digest:
            lines.append(say("  the content of {name} has changed", name=name))
    then, current = _section(earlier, "base"), now["base"]
    if then and then != current:
        names = sorted(name for name in {*then, *current} if then.get(name) != current.get(name))
        lines.append(say("  the base model has changed: {names}", names=", ".join(names)))
    return lines


def doubts(earlier: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """One line for each thing that need not change the result, but may, beyond what `differences` finds."""
    then, current, lines = _section(earlier, "split"), now["split"], []
    if then and then != current:
        old, new = (" × ".join(_shown(found.get(name)) for name in _SPLIT) for found in (then, current))
        lines.append(
            say(
                "  {names}: {old} → {new}: a step has the same rows, but its sums differ in their last bits",
                names=" × ".join(_SPLIT),
                old=old,
                new=new,
            )
        )
    then, current = _section(earlier, "base_times"), now["base_times"]
    rewritten = [name for name in current if then.get(name, current[name]) != current[name]]
    return [
        *lines,
        *(
            say("  {name} of the base model was written anew; what is compared of it is equal", name=n)
            for n in rewritten
        ),
    ]


def _section(earlier: dict[str, Any], name: str) -> dict[str, Any]:
    found = earlier.get(name)
    return found if isinstance(found, dict) else {}


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _data_digest(name: str | None) -> str | None:
    """Of a file's or a folder's whole content; of a hub name, the name."""
    if name is None or not Path(name).exists():
        return name
    path = Path(name)
    if path.is_file():
        return sha256(path)
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("cache-")):
        digest.update(f"{file.relative_to(path)} {sha256(file)}\n".encode())
    return digest.hexdigest()


def _base_files(directory: Path) -> list[Path]:
    return sorted({file for pattern in _WEIGHTS for file in directory.glob(pattern) if file.is_file()})


def _is_large(file: Path) -> bool:
    return file.stat().st_size > _WHOLE_BYTES


def _digest(path: Path) -> str:
    """Of a file's content; of a large one's size and 64 evenly spread blocks, for a start is not to take minutes."""
    if not _is_large(path):
        return sha256(path)
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for number in range(_NUM_SAMPLES):
            file.seek(max(0, size - _SAMPLE_BYTES) * number // (_NUM_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()

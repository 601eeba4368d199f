"""Which adapters can be put into the weights of their base."""

from pathlib import Path

from softlaunch.errors import CheckpointError
from softlaunch.run_directory import CONFIG_FILE, read_json

_MERGEABLE = ("LORA", "IA3")


def require_mergeable(adapter: Path) -> None:
    """Raises CheckpointError, with the reason and what to do instead, for an adapter that is no change of weights."""
    if not (adapter / CONFIG_FILE).is_file():
        raise _prefix_error(adapter)  # the original scripts' format
    config = read_json(adapter / CONFIG_FILE)
    kind = config.get("peft_type")
    if config.get("task_type") == "SEQ_CLS":
        raise CheckpointError(
            "{path}: this adapter belongs to a classifier; only adapters of models that answer can be merged. Use it "
            "on its base, with recipes/classify.py or PEFT, or train the whole model (tuning full).",
            path=adapter,
        )
    if kind in ("P_TUNING_V2", "PREFIX_TUNING"):
        raise _prefix_error(adapter)
    if kind in ("PROMPT_TUNING", "P_TUNING"):
        raise CheckpointError(
            "{path}: this adapter is a soft prompt, embeddings in front of every text, and no change of the base's "
            "weights: it cannot be merged. Load it on the base, with Softlaunch or PEFT, or train a LoRA instead.",
            path=adapter,
        )
    if kind not in _MERGEABLE:
        raise CheckpointError(
            "{path}: peft_type is {kind!r}; what can be merged is {mergeable}",
            path=adapter,
            kind=kind,
            mergeable=", ".join(_MERGEABLE),
        )


def _prefix_error(adapter: Path) -> CheckpointError:
    return CheckpointError(
        "{path}: this adapter is a prefix: keys and values that every token attends to beside those of the text. No "
        "change of the base's weights computes the same, so it cannot be merged. Load it on the base with "
        "softlaunch.tuning.load_adapter, or convert it for programs that use PEFT (softlaunch convert {path} OUT --to "
        "peft), or train a LoRA instead, which can be merged.",
        path=adapter,
    )

"""Putting an adapter into the weights of its base, where its method allows that."""

import warnings
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from transformers import PreTrainedModel

from softlaunch.errors import CheckpointError
from softlaunch.run_directory import CONFIG_FILE, read_json

_MERGEABLE = ("LORA", "IA3")
_WEIGHTS_FILE = "adapter_model.safetensors"


def require_mergeable(adapter: Path) -> None:
    """Raises CheckpointError, with the reason and what to do instead, for an adapter that is no change of weights."""
    if not (adapter / CONFIG_FILE).is_file():
        raise _prefix_error(adapter)  # the original scripts' format
    kind = read_json(adapter / CONFIG_FILE).get("peft_type")
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


def with_adapter(base: PreTrainedModel, adapter: Path) -> PeftModel:
    """`base` with the LoRA or IA3 adapter in `adapter`, active, in evaluation mode.

    Raises CheckpointError when not every tensor of the adapter has its place in the base, or the other way round.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what does not fit is an error, below
            tuned = PeftModel.from_pretrained(base, adapter, ignore_mismatched_sizes=True).eval()
    except Exception as error:  # whatever PEFT and safetensors raise over files that are damaged or do not fit
        raise CheckpointError(
            "{path} cannot be loaded on {base}: {error}",
            path=adapter,
            base=base.name_or_path,
            error=str(error).partition("\n")[0],
        ) from error
    own = get_peft_model_state_dict(tuned, save_embedding_layers=False)
    expected = {name: tuple(tensor.shape) for name, tensor in own.items()}
    # Stock PEFT sometimes adds the base's embeddings
    found = {k: v for k, v in _shapes(adapter / _WEIGHTS_FILE).items() if k in expected or k not in tuned.state_dict()}
    if expected != found:
        wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise CheckpointError(
            "{path} was made for another model than {base}: for {name} that needs {expected}, and found is {found}; "
            "{number} more tensors differ",
            path=adapter,
            base=base.name_or_path,
            name=wrong[0],
            expected=expected.get(wrong[0]),
            found=found.get(wrong[0]),
            number=len(wrong) - 1,
        )
    return tuned


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    opened: Any
    with safe_open(file, framework="pt") as opened:
        return {name: tuple(opened.get_slice(name).get_shape()) for name in list(opened.keys())}

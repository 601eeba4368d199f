"""Where a base model is: in a local directory, or on the hub under a name that looks like one."""

from difflib import get_close_matches
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, try_to_load_from_cache

from softlaunch.errors import CheckpointError
from softlaunch.messages import say

_HUB_TIMEOUT_S = 5.0


def require_model(
    path: str,
    *,
    revision: str | None = None,
    cache_dir: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> None:
    """Stops if `path` is neither a directory nor the name of a model on the hub.

    The hub is asked once and for a few seconds; its own loading functions try for half a minute when they are offline.
    A model that was downloaded earlier, or `HF_HUB_OFFLINE`, needs no question.

    Raises CheckpointError with the nearest directory that there is.
    """
    if Path(path).is_dir():
        return
    if Path(path).exists():
        raise CheckpointError("{path}: this is a file; give the directory that holds it", path=path)
    try:
        if (
            local_files_only
            or constants.HF_HUB_OFFLINE
            or try_to_load_from_cache(path, "config.json", cache_dir, revision)
        ):
            return
        HfApi(token=token).model_info(path, revision=revision, timeout=_HUB_TIMEOUT_S)
    except Exception as error:  # no valid name, no such model, no access, and whatever an HTTP client raises
        raise nothing_there(path, error) from error


def nothing_there(path: str, reason: Any) -> CheckpointError:
    """The error for a path that is no directory, and on the hub no model that can be had, for this `reason`."""
    near = _nearest_directory(Path(path))
    hint = say('Did you mean "{near}"?', near=near) if near else say("Give the directory of a checkpoint, or a hub id.")
    return CheckpointError(
        "{path}: no such directory (looked for {absolute}), and no model under this name on the hub ({reason}). {hint}",
        path=path,
        absolute=Path(path).absolute(),
        reason=str(reason).strip().partition("\n")[0],
        hint=hint,
    )


def chatglm_6b(path: str) -> CheckpointError:
    """The error for the first ChatGLM-6B, in its config or its tokenizer."""
    return CheckpointError(
        "{path}: this is ChatGLM-6B (v1), another network and tokenizer under the same model_type. A class of its own "
        "will come; until then take ChatGLM2-6B, ChatGLM3-6B or GLM-4-9B",
        path=path,
    )


def _nearest_directory(path: Path) -> Path | None:
    """The existing directory whose parts are each equal or close to those of `path`; None if a part has none."""
    found = Path(path.anchor)
    for part in path.parts[1:] if path.anchor else path.parts:
        if part not in (".", "..") and not (found / part).is_dir():
            names = [entry.name for entry in found.iterdir() if entry.is_dir()]
            near = get_close_matches(part, names, n=1)
            if not near:
                return None
            part = near[0]
        found = found / part
    return found

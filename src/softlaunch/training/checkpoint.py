"""The checkpoints of a run: which there are, how one is put in place, which is gone on from and which are deleted."""

import logging
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from softlaunch.arguments import TrainingArguments
from softlaunch.collective import decided_by_first
from softlaunch.errors import CheckpointError
from softlaunch.files import flush
from softlaunch.messages import say
from softlaunch.run_directory import MANIFEST_FILE, checkpoints
from softlaunch.training.manifest import problem, read_manifest
from softlaunch.tuning.split import gathered

logger = logging.getLogger(__name__)

INCOMPLETE = ".incomplete"  # where a checkpoint is written before it takes its place
_EARLIER = "earlier-"  # there too: what a checkpoint replaces
_DAMAGED = ".damaged"


def trained_tensors(model: nn.Module, *, in_deepspeed: bool = False, keep: bool = True) -> dict[str, torch.Tensor]:
    """What is to be saved, by name and whole: what was trained of a model with adapters, all of another one.

    All processes call it together, and those that do not `keep` the tensors get none. Under DeepSpeed trained ones are
    the float32 copies that its optimizer steps: in half precision those of the model are rounded ones.
    """
    everything = not isinstance(model, PeftModel)
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad and not everything:
            continue
        if in_deepspeed and parameter.requires_grad:
            from deepspeed.utils import safe_get_full_fp32_param

            tensor = safe_get_full_fp32_param(parameter)
            tensors |= {name: tensor.cpu()} if keep else {}
            continue
        with gathered([parameter]) as (tensor,):  # one at a time: a whole model need not fit beside its parts
            is_whole = tensor is parameter and not hasattr(parameter, "ds_id")
            tensors |= {name: tensor.detach() if is_whole else tensor.detach().cpu().clone()} if keep else {}
    return tensors


def put_in_place(written: Path, place: Path) -> None:
    """Rename the folder `written` to `place`; what was there goes once the new one has its name. Raises OSError."""
    earlier = written.with_name(f"{_EARLIER}{place.name}")
    if place.exists():
        shutil.rmtree(earlier, ignore_errors=True)
        place.rename(earlier)
    try:
        written.rename(place)
    except OSError:
        if earlier.exists():
            earlier.rename(place)
        raise
    flush(place.parent)
    shutil.rmtree(earlier, ignore_errors=True)


def displaced(output_dir: Path) -> list[tuple[Path, Path]]:
    """(where it lies, its place) of the whole folders that a kill between the two steps of `put_in_place` left."""
    found = []
    for earlier in (output_dir / INCOMPLETE).glob(f"{_EARLIER}[a-z]*"):
        new = earlier.with_name(earlier.name.removeprefix(_EARLIER))
        if not (output_dir / new.name).exists():
            found.append((new if new.is_dir() else earlier, output_dir / new.name))
    return found


def rotate(output_dir: Path, new: Path, run: dict[str, Any], *, limit: int | None, best: str | None) -> None:
    """Delete what `new`, a checkpoint that was just put in place, makes superfluous.

    That is: checkpoints of the run that this one replaces (`restart`), damaged ones, and, when there are more than
    `limit`, the oldest. The new one and the best always stay.
    """
    kept = {new.name, Path(best).name if best else new.name}
    superfluous = list(output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*{_DAMAGED}"))
    for path in output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        if path.name in run.get("earlier", []) and path.is_dir() and read_manifest(path).get("run_id") != run.get("id"):
            superfluous.append(path)
    own = [path for path in checkpoints(output_dir) if path not in superfluous]
    if limit:
        removable = [path for path in own if path.name not in kept]
        superfluous += removable[: max(0, len(own) - max(limit, len(kept)))]
    # Out of sight at once, whole: what a kill leaves of it, the next start clears
    incomplete = output_dir / INCOMPLETE
    incomplete.mkdir(exist_ok=True)
    for path in superfluous:
        with suppress(OSError):  # a mount point, say: it stays
            path.rename(incomplete / f"superfluous-{path.name}")
    shutil.rmtree(incomplete, ignore_errors=True)


def checkpoint_to_resume(arguments: TrainingArguments, run_id: str | None = None) -> str | None:
    """The checkpoint that training goes on from, None for the beginning; the first process decides for all.

    `restart`: none. `resume_from_checkpoint`: that one. Otherwise the newest of the run `run_id` in `output_dir` whose
    files all are as its manifest says; those that are not are set aside, with the reason. Raises CheckpointError when
    the one that was asked for cannot be used, or when one was saved by processes that this launch does not match.
    """
    return decided_by_first(lambda: _checkpoint_to_resume(arguments, run_id))


def _checkpoint_to_resume(arguments: TrainingArguments, run_id: str | None) -> str | None:
    asked = str(arguments.resume_from_checkpoint or "true")
    if arguments.restart:
        checkpoint = None
    elif asked.lower() != "true":
        checkpoint = _asked_for(Path(asked))
    else:
        checkpoint = _newest_good(Path(str(arguments.output_dir)), run_id)
    if checkpoint is None:
        return None
    _check_processes(checkpoint, arguments)
    logger.info(say("going on from {checkpoint}; set restart to begin anew", checkpoint=checkpoint))
    return str(checkpoint)


def _asked_for(checkpoint: Path) -> Path:
    if not (checkpoint / TRAINER_STATE_NAME).is_file():
        raise CheckpointError(
            "{asked}: no checkpoint to resume from ({trainer_state_name} is missing)",
            asked=checkpoint,
            trainer_state_name=TRAINER_STATE_NAME,
        )
    if not (checkpoint / MANIFEST_FILE).is_file():
        logger.warning(say("{path} has no manifest: it cannot be told whether it is whole", path=checkpoint))
        return checkpoint
    reason = problem(checkpoint)
    if reason:
        raise CheckpointError("{path} is damaged: {reason}", path=checkpoint, reason=reason)
    return checkpoint


def _newest_good(output_dir: Path, run_id: str | None) -> Path | None:
    for path in output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        if path.is_dir() and not path.name.endswith(_DAMAGED) and not (path / MANIFEST_FILE).is_file():
            logger.warning(say("{path} is passed over: it has no {file}", path=path, file=MANIFEST_FILE))
    for path in reversed(checkpoints(output_dir)):
        if run_id is not None and read_manifest(path).get("run_id") not in (run_id, None):
            continue
        reason = problem(path)
        if reason is None:
            return path
        logger.warning(say("{path} is damaged and passed over: {reason}", path=path, reason=reason))
        aside = path.with_name(path.name + _DAMAGED)
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
    return None


def _check_processes(checkpoint: Path, arguments: TrainingArguments) -> None:
    """DeepSpeed reads only its own checkpoints, of as many processes. Others go on, but not to the last bit."""
    parts = list(checkpoint.glob("global_step*/*_optim_states.pt"))
    in_deepspeed = arguments.deepspeed_plugin is not None
    if bool(parts) != in_deepspeed or (parts and len(parts) != arguments.world_size):
        raise CheckpointError(
            "{checkpoint} was saved {saved}, and this run is {now}: it cannot go on from there. Launch it as that one "
            "was, or begin anew (restart) from what it has learned (adapter, with this directory)",
            checkpoint=checkpoint,
            saved=_launch(bool(parts), len(parts)),
            now=_launch(in_deepspeed, arguments.world_size),
        )
    saved_by = read_manifest(checkpoint).get("world_size", arguments.world_size)
    if saved_by != arguments.world_size:
        message = say(
            "{checkpoint} was saved by {before} processes and this run has {now}: it sees the same rows in the same "
            "order, but its random numbers (dropout) and the order of its sums are others",
            checkpoint=checkpoint,
            before=saved_by,
            now=arguments.world_size,
        )
        logger.warning(message)


def _launch(in_deepspeed: bool, num_processes: int) -> str:
    if not in_deepspeed:
        return say("without DeepSpeed")
    return say("under DeepSpeed with {number} processes", number=num_processes)

"""What a run saves, and where it goes on from."""

import logging
from pathlib import Path

import torch
from peft import PeftModel
from torch import nn
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from softlaunch.arguments import TrainingArguments
from softlaunch.errors import CheckpointError
from softlaunch.messages import say
from softlaunch.tuning.split import gathered

logger = logging.getLogger(__name__)


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


def checkpoint_to_resume(arguments: TrainingArguments) -> str | None:
    """The checkpoint that training goes on from, None for the beginning.

    `restart`: none. `resume_from_checkpoint`: that one. Otherwise the newest of `output_dir` that was written whole.
    Raises CheckpointError when the one that was asked for is none, or when one was saved under another way of splitting
    the training over processes than this one.
    """
    checkpoint = None if arguments.restart else _find_checkpoint(arguments)
    if checkpoint is not None:
        _check_split(checkpoint, arguments)
    return checkpoint


def _find_checkpoint(arguments: TrainingArguments) -> str | None:
    asked = arguments.resume_from_checkpoint
    if asked and str(asked).lower() != "true":
        if not _is_whole(Path(asked)):
            raise CheckpointError(
                "{asked}: no checkpoint to resume from ({trainer_state_name} is missing)",
                asked=asked,
                trainer_state_name=TRAINER_STATE_NAME,
            )
        return str(asked)
    found = {int(p.name.rpartition("-")[2]): p for p in _checkpoints(Path(str(arguments.output_dir))) if _is_whole(p)}
    if not found:
        return None
    newest = str(found[max(found)])
    logger.info("going on from %s; set restart to begin anew", newest)
    return newest


def _check_split(checkpoint: str, arguments: TrainingArguments) -> None:
    """DeepSpeed reads only its own checkpoints, of as many processes; others go on without the optimizer's state."""
    parts = list(Path(checkpoint).glob("global_step*/*_optim_states.pt"))
    saved = _way(len(parts))
    in_deepspeed = arguments.deepspeed_plugin is not None
    if bool(parts) != in_deepspeed or (parts and len(parts) != arguments.world_size):
        now = _way(arguments.world_size if in_deepspeed else 0)
        raise CheckpointError(
            "{checkpoint} was saved {saved}, and this run is {now}: it cannot go on from there. Launch it as that "
            "one was, or begin anew (restart) from what it has learned (adapter, with this directory)",
            checkpoint=checkpoint,
            saved=saved,
            now=now,
        )


def _way(num_deepspeed_processes: int) -> str:
    if not num_deepspeed_processes:
        return say("without DeepSpeed")
    return say("under DeepSpeed with {number} processes", number=num_deepspeed_processes)


def _checkpoints(output_dir: Path) -> list[Path]:
    paths = output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
    return [path for path in paths if path.name.rpartition("-")[2].isdigit()]


def _is_whole(checkpoint: Path) -> bool:
    """`trainer_state.json` is what Trainer writes last."""
    return (checkpoint / TRAINER_STATE_NAME).is_file()

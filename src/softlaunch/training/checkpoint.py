"""Where a run goes on from."""

import logging
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from softlaunch.arguments import TrainingArguments
from softlaunch.errors import CheckpointError

logger = logging.getLogger(__name__)


def checkpoint_to_resume(arguments: TrainingArguments) -> str | None:
    """The checkpoint that training goes on from, None for the beginning.

    `restart`: none. `resume_from_checkpoint`: that one. Otherwise the newest of `output_dir` that was written whole.
    Raises CheckpointError when the one that was asked for is none.
    """
    if arguments.restart:
        return None
    asked = arguments.resume_from_checkpoint
    if asked and str(asked).lower() != "true":
        if not _is_whole(Path(asked)):
            raise CheckpointError(f"{asked}: no checkpoint to resume from ({TRAINER_STATE_NAME} is missing)")
        return str(asked)
    found = {int(p.name.rpartition("-")[2]): p for p in _checkpoints(Path(str(arguments.output_dir))) if _is_whole(p)}
    if not found:
        return None
    newest = str(found[max(found)])
    logger.info("going on from %s; set restart to begin anew", newest)
    return newest


def _checkpoints(output_dir: Path) -> list[Path]:
    paths = output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
    return [path for path in paths if path.name.rpartition("-")[2].isdigit()]


def _is_whole(checkpoint: Path) -> bool:
    """`trainer_state.json` is what Trainer writes last."""
    return (checkpoint / TRAINER_STATE_NAME).is_file()

"""What a training run leaves beside its weights."""

import json
import logging
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from softlaunch.files import write_text
from softlaunch.messages import say

logger = logging.getLogger(__name__)


class MetricsFile(TrainerCallback):
    """Appends every log record to `metrics.jsonl`, with its time in seconds since 1970.

    A run that begins anew replaces the file with its first record; one that goes on from step N drops the records of
    later steps, for it makes them again.
    """

    def __init__(self, path: Path, restart: bool):
        self.path, self.replace = path, restart

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not state.is_world_process_zero or self.replace or not self.path.is_file():
            return
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        kept = [line for line in lines if _step(line) <= state.global_step]
        if len(kept) < len(lines):
            write_text(self.path, "".join(line + "\n" for line in kept))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if not state.is_world_process_zero or not logs:
            return
        record = {"step": state.global_step, "time": round(time.time(), 1), **logs}
        line = json.dumps(record, ensure_ascii=False) + "\n"
        try:
            with self.path.open("w" if self.replace else "a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:  # a full disk stops no training
            logger.error(say("{file} cannot be written: {error}", file=self.path, error=error))
        self.replace = False


def _step(line: str) -> float:
    """The step of a record; infinity for a line that was cut off."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")

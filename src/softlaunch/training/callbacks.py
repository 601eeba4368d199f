"""What a training run leaves beside its weights."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR


class MetricsFile(TrainerCallback):
    """Appends every log record to `metrics.jsonl`, with its time in seconds since 1970.

    A run that begins anew replaces the file with its first record.
    """

    def __init__(self, path: Path, restart: bool):
        self.path, self.replace = path, restart

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if state.is_world_process_zero and logs:
            with self.path.open("w" if self.replace else "a", encoding="utf-8") as file:
                record = {"step": state.global_step, "time": round(time.time(), 1), **logs}
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
            self.replace = False


class ReplaceEarlierRun(TrainerCallback):
    """`restart`: the checkpoints of the run before are deleted once the new run has one of its own."""

    def __init__(self, output_dir: Path):
        self.earlier = set(output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*"))

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            new = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            for checkpoint in self.earlier - {new}:
                shutil.rmtree(checkpoint, ignore_errors=True)
        self.earlier = set()

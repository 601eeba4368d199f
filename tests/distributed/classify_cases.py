"""Classification of every kind of saved result in one launch: `classify_cases.py DIRECTORY`, see `cases.py`.

The directory holds `base/`, `train.txt` and `test.txt`; each method leaves a run directory there.
"""

import json
import os
import runpy
import sys
from pathlib import Path

import torch

from softlaunch.entry import run
from tests.distributed.deepspeed_ops import skip_compilation

RECIPE = Path(__file__).parents[2] / "recipes" / "classify.py"
METHODS = ("lora", "p_tuning_v2", "head", "full")  # PEFT's adapter, ours, features of a frozen encoder, a whole model
ROWS_PER_UPDATE = 8


def arguments(directory: Path, method: str, num_processes: int) -> list[str]:
    """The command line of a method; nothing is dropped out, so that the losses can be compared."""
    options = {
        "model_name_or_path": directory / "base",
        "train_file": directory / "train.txt",
        "test_file": directory / "test.txt",
        "text_column": 0,
        "label_column": 1,
        "tuning": method,
        "output_dir": directory / method,
        "per_device_train_batch_size": ROWS_PER_UPDATE // num_processes,
        "per_device_eval_batch_size": 3,
        "do_train": True,
        "do_predict": True,
        "eval_strategy": "steps",
        "eval_steps": 3,
        "save_steps": 3,
        "load_best_model_at_end": True,
        "max_steps": 6,
        "logging_steps": 1,
        "learning_rate": 0.01,
        "class_weights": True,
        "max_source_length": 32,
        "disable_tqdm": True,
        "report_to": "none",
        **({"pre_seq_len": 4, "prefix_dropout": 0} if method == "p_tuning_v2" else {}),
    }
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def run_cases(directory: Path) -> None:
    main = runpy.run_path(str(RECIPE))["main"]
    rank, num_processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    for method in METHODS:
        sys.argv = [str(RECIPE), *arguments(directory, method, num_processes)]
        main()
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
    world_size = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    (directory / f"rank-{rank}.json").write_text(json.dumps({"world_size": world_size}))


if __name__ == "__main__":
    skip_compilation()
    run(lambda: run_cases(Path(sys.argv[1])))

"""N steps at once = k steps, killed, N − k steps, bit for bit: methods × strategies.

python -m tests.faults.exact                        # the whole matrix, a table at the end
python -m tests.faults.exact --strategies zero2     # one launch
"""

import argparse
import json
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.distributed.deepspeed_ops import skip_compilation

ROOT = Path(__file__).parents[2]
_TITLES = ROOT / "recipes" / "demo_titles"
TITLES = {
    **{"model_name_or_path": _TITLES / "base", "text_column": "title", "label_column": "tag", "learning_rate": 0.003},
    **{f"{step}_file": _TITLES / f"{step}.json" for step in ("train", "validation", "test")},
    **{"max_train_samples": 16, "max_eval_samples": 6, "max_predict_samples": 6, "max_source_length": 64},
    **dict.fromkeys(["prompt_column", "response_column", "max_target_length", "val_max_target_length"]),
}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "P-Tuning v2": ("ptuning_chatglm.py", {"pre_seq_len": 4, "prefix_dropout": 0.2, "prefix_projection": True}),
    "LoRA": ("lora_chatglm.py", {"lora_r": 4, "lora_dropout": 0.2, "learning_rate": 0.01}),
    "full": ("finetune_chatglm.py", {"tuning": "full", "learning_rate": 0.001}),
    "classes, LoRA": ("classify.py", {**TITLES, "tuning": "lora", "lora_dropout": 0.2, "learning_rate": 0.003}),
    "classes, head": ("classify.py", {**TITLES, "tuning": "head", "learning_rate": 0.01}),
}
STRATEGIES = {"cpu": 1, "ddp": 2, "zero2": 2, "zero3": 2}
KILLED_AFTER = (1, 5, 8)  # the beginning, within the second epoch, the last step


class _Killed(BaseException):
    """Ends a run where it stands, as far as a process can do that and live."""


def launch(strategy: str, directory: Path, methods: Sequence[str] = tuple(METHODS)) -> dict[str, bool]:
    """Methods under a strategy in one launch; whether each ended the same."""
    config = ["--config_file", f"launch/accelerate/{strategy}.yaml", "--num_processes", str(STRATEGIES[strategy])]
    command = ["accelerate", "launch", "--main_process_port", "0", *config, __file__, "--inside", str(directory)]
    command += ["--methods", *methods]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"}
    env["HF_DATASETS_CACHE"] = str(directory / "cache")
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=900, check=False)
    notes = directory / "equal.json"  # written when all work is done; the exit code also tells of the teardown
    assert notes.exists(), (done.stdout + done.stderr)[-6000:]
    return json.loads(notes.read_text())


def _inside(directory: Path, methods: Sequence[str]) -> None:
    """In every process of a launch."""
    from softlaunch.collective import wait_for_all
    from softlaunch.training.saving import ResumableTrainer
    from tests.faults.driver import arguments, write_rows

    rank = int(os.environ.get("RANK", "0"))
    if rank == 0:
        write_rows(directory)
        tags = {json.loads(line)["tag"] for line in (_TITLES / "train.json").read_text(encoding="utf-8").splitlines()}
        (directory / "classes.txt").write_text("\n".join(sorted(tags)), encoding="utf-8")
    stop_after: list[int] = []
    at_boundary = ResumableTrainer._maybe_log_save_evaluate

    def stopping(self: Any, *args: Any, **kwargs: Any) -> None:
        at_boundary(self, *args, **kwargs)
        if self.state.global_step in stop_after:
            raise _Killed

    ResumableTrainer._maybe_log_save_evaluate = stopping  # type: ignore[method-assign]

    def train(name: str, method: str, *stops: int) -> Path:
        recipe, options = METHODS[method]
        out = directory / f"{method}-{name}"
        batch = 4 // int(os.environ.get("WORLD_SIZE", "1"))
        files = {"train_file": directory / "train.json", "validation_file": directory / "test.json"}
        files["test_file"] = files["validation_file"]
        own = {"pre_seq_len": None, "prefix_dropout": None, "save_steps": 1, "per_device_train_batch_size": batch}
        own |= {"class_file": directory / "classes.txt"} if recipe == "classify.py" else {}
        words = arguments(out, **{**files, **own, **options})
        main = runpy.run_path(str(ROOT / "recipes" / recipe))["main"]
        for stop in (*stops, 0):
            stop_after[:] = [stop]
            sys.argv = [recipe, *words, "--eval_steps", "1", "--include_num_input_tokens_seen", "all"]
            try:
                main()
            except _Killed:
                wait_for_all()
        wait_for_all()
        return out / "run"

    equal = {method: _same(train("whole", method), train("killed", method, *KILLED_AFTER)) for method in methods}
    if rank == 0:
        (directory / "equal.json").write_text(json.dumps(equal))


def _same(whole: Path, killed: Path) -> bool:
    """Trained weights, and the optimizer's, the scheduler's and the counters' states of the last checkpoint."""
    import torch

    def state(run: Path) -> list[Any]:
        last = run / "checkpoint-8"
        files = sorted(p for p in last.rglob("*") if p.suffix in (".pt", ".pth"))
        tensors = [torch.load(file, weights_only=False) for file in files]  # our own, written a moment ago
        kept = json.loads((last / "trainer_state.json").read_text())
        counters = {key: kept[key] for key in ("global_step", "epoch", "num_input_tokens_seen", "best_metric")}
        log = [
            {k: v for k, v in record.items() if k in ("step", "loss", "eval_loss")} for record in kept["log_history"]
        ]
        weights = next(p for name in ("adapter", "model") for p in run.glob(f"{name}/*.safetensors"))
        return [weights.read_bytes(), tensors, counters, log]

    return _equal(state(whole), state(killed))


def _equal(one: Any, other: Any) -> bool:
    import numpy as np
    import torch

    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    if hasattr(one, "__dict__"):
        return _equal(vars(one), vars(other))
    return one == other


def main() -> None:
    """The table of the matrix."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES), choices=list(STRATEGIES))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        from softlaunch.entry import run

        skip_compilation()
        run(lambda: _inside(options.inside, options.methods))
        return
    lines = [f"| | {' | '.join(options.methods)} |", "|---|" + "---|" * len(options.methods)]
    for strategy in options.strategies:
        with tempfile.TemporaryDirectory() as directory:
            equal = launch(strategy, Path(directory), options.methods)
        words = [_word(equal[name]) for name in options.methods]
        lines.append(f"| {strategy}, {STRATEGIES[strategy]} | {' | '.join(words)} |")
        sys.stdout.write(lines[-1] + "\n")
    sys.stdout.write("\n" + "\n".join(lines) + "\n")


def _word(equal: bool) -> str:
    return "equal" if equal else "**differs**"


if __name__ == "__main__":
    main()

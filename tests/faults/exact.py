"""N steps at once = k steps, killed, N − k steps in fresh processes, bit for bit: methods × strategies.

python -m tests.faults.exact                        # the whole matrix, a table at the end
python -m tests.faults.exact --strategies zero2     # one strategy
"""

import argparse
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
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
# Killed after step 1 (the beginning), 5 (within the second epoch) and 8 (the last one); 0: at its end. Each group is a
# launch of its own: what comes first in one goes on in fresh processes.
FRESH_EACH_TIME = ((1,), (5,), (8,), (0,))
FRESH_ONCE = ((1, 5), (8, 0))


class _Killed(BaseException):
    """Ends a run where it stands, as far as a process can do that and live."""


def launch(
    strategy: str,
    directory: Path,
    methods: Sequence[str] = tuple(METHODS),
    stops: Sequence[Sequence[int]] = FRESH_EACH_TIME,
) -> dict[str, bool]:
    """Methods under a strategy, one launch for each group of `stops`; whether each ended the same."""
    config = ["--config_file", f"launch/accelerate/{strategy}.yaml", "--num_processes", str(STRATEGIES[strategy])]
    command = ["accelerate", "launch", "--main_process_port", "0", *config, __file__, "--inside", str(directory)]
    command += ["--methods", *methods, "--stops"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"}
    env["HF_DATASETS_CACHE"] = str(directory / "cache")
    for group in stops:
        words = [*command, *map(str, group)]
        done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=900, check=False)
        output = done.stdout + done.stderr
        # Written when all work is done; the exit code also tells of the teardown, or of the kill
        assert all(_note(directory, method, group[-1]).exists() for method in methods), output[-6000:]
        assert output.count("going on from") >= len(methods) * (len(group) - (group == stops[0])), output[-6000:]
    return json.loads((directory / "equal.json").read_text())


def _note(directory: Path, method: str, stop: int) -> Path:
    return directory / f"{method}-killed" / "run" / f"checkpoint-{stop}" if stop else directory / "equal.json"


def _inside(directory: Path, methods: Sequence[str], stops: Sequence[int]) -> None:
    """In every process of a launch."""
    from softlaunch.collective import wait_for_all
    from softlaunch.training.saving import ResumableTrainer
    from tests.faults.driver import arguments, write_rows

    rank = int(os.environ.get("RANK", "0"))
    begins = not (directory / f"{methods[0]}-killed").exists()
    if rank == 0 and begins:
        write_rows(directory)
        tags = {json.loads(line)["tag"] for line in (_TITLES / "train.json").read_text(encoding="utf-8").splitlines()}
        (directory / "classes.txt").write_text("\n".join(sorted(tags)), encoding="utf-8")
    stop_after, dies = 0, False
    at_boundary = ResumableTrainer._maybe_log_save_evaluate

    def stopping(self: Any, *args: Any, **kwargs: Any) -> None:
        at_boundary(self, *args, **kwargs)
        if self.state.global_step == stop_after:
            if dies:
                os.kill(os.getpid(), signal.SIGKILL)
            raise _Killed

    ResumableTrainer._maybe_log_save_evaluate = stopping  # type: ignore[method-assign]

    def train(name: str, method: str, stop: int = 0) -> Path:
        nonlocal stop_after, dies
        stop_after, dies = stop, method == methods[-1] and stop == stops[-1]
        recipe, options = METHODS[method]
        out = directory / f"{method}-{name}"
        batch = 4 // int(os.environ.get("WORLD_SIZE", "1"))
        files = {"train_file": directory / "train.json", "validation_file": directory / "test.json"}
        files["test_file"] = files["validation_file"]
        own = {"pre_seq_len": None, "prefix_dropout": None, "save_steps": 1, "per_device_train_batch_size": batch}
        own |= {"class_file": directory / "classes.txt"} if recipe == "classify.py" else {}
        words = arguments(out, **{**files, **own, **options})
        main = runpy.run_path(str(ROOT / "recipes" / recipe))["main"]
        sys.argv = [recipe, *words, "--eval_steps", "1", "--include_num_input_tokens_seen", "all"]
        with suppress(_Killed):
            main()
        wait_for_all()
        return out / "run"

    for method in methods:
        if begins:
            train("whole", method)
        for stop in stops:
            train("killed", method, stop)
    if rank == 0:
        runs = {method: [directory / f"{method}-{name}" / "run" for name in ("whole", "killed")] for method in methods}
        (directory / "equal.json").write_text(json.dumps({method: _same(*found) for method, found in runs.items()}))


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
    parser.add_argument("--stops", type=int, nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        from softlaunch.entry import run

        skip_compilation()
        run(lambda: _inside(options.inside, options.methods, options.stops))
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

"""Runs of the recipe that are killed at a chosen instant, in processes forked after the imports.

The parent must not have used torch or a thread. A child reports every phase that it enters and leaves through a pipe;
the parent kills it (SIGKILL) some time after it entered the chosen one.
"""

import json
import os
import runpy
import select
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.distributed.inputs import DEMO

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "ptuning_chatglm.py"
TIMEOUT_S = 120
# phase → (module, what in it): a call of it is one occurrence of the phase
PHASES = {
    "start-up": ("softlaunch.models", "load_base"),
    "opening": ("softlaunch.training.begin", "find_run"),
    "recording": ("softlaunch.training.begin", "record_run"),
    "tokenisation": ("softlaunch.data.dataset", "load_rows"),
    "step": ("softlaunch.training.trainer", "CausalTrainer.training_step"),
    "evaluation": ("softlaunch.training.trainer", "CausalTrainer.evaluate"),
    "saving": ("softlaunch.training.saving", "ResumableTrainer._save_whole_checkpoint"),
    "listing": ("softlaunch.training.saving", "write_manifest"),
    "renaming": ("softlaunch.training.saving", "put_in_place"),
    "rotation": ("softlaunch.training.saving", "rotate"),
    "saving the result": ("softlaunch.training.saving", "ResumableTrainer.save_result"),
    "prediction": ("softlaunch.evaluation.report", "predict_and_score"),
    "merging": ("softlaunch.evaluation.predict", "_merge"),
}
NUM_STEPS, NUM_TRAIN_ROWS, NUM_TEST_ROWS = 8, 16, 6  # two epochs


@dataclass(frozen=True)
class Kill:
    """Kill after `delay_s` in the `occurrence`-th call (from 0) of a phase."""

    phase: str
    occurrence: int
    delay_s: float


@dataclass
class Ended:
    """How a run ended: its exit code (negative: the signal), what it said, and (phase, seconds) of every call."""

    code: int
    output: str
    phases: list[tuple[str, float]] = field(default_factory=list)


def arguments(directory: Path, **changes: Any) -> list[str]:
    """The command line of a short run in `directory / run`: dropout, evaluations, rotation and a best checkpoint.

    `changes` go on top; None leaves an option out.
    """
    options = {
        "model_name_or_path": DEMO / "base",
        "output_dir": directory / "run",
        "train_file": directory / "train.json",
        "validation_file": directory / "test.json",
        "test_file": directory / "test.json",
        "prompt_column": "content",
        "response_column": "summary",
        "max_target_length": 32,
        "val_max_target_length": 6,
        "pre_seq_len": 4,
        "prefix_dropout": 0.2,
        "learning_rate": 0.03,
        "max_steps": NUM_STEPS,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 2,
        "logging_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_steps": 2,
        "save_total_limit": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "loss",
        "disable_tqdm": True,
    }
    words = ["--do_train", "--do_eval", "--do_predict"]
    for name, value in {**options, **changes}.items():
        words += [] if value is None else [f"--{name}", str(value)]
    return words


def write_rows(directory: Path) -> None:
    """`train.json` and `test.json`."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, num_rows in (("train.json", NUM_TRAIN_ROWS), ("test.json", NUM_TEST_ROWS)):
        lines = (DEMO / name).read_text(encoding="utf-8").splitlines(keepends=True)
        (directory / name).write_text("".join(lines[:num_rows]), encoding="utf-8")


def warm_up() -> None:
    """Import all that a run imports, and read jieba's dictionary, in the process that will be forked."""
    import softlaunch.evaluation.report
    import softlaunch.evaluation.scores
    import softlaunch.training.begin
    import softlaunch.training.trainer  # noqa: F401
    from softlaunch.evaluation.text_metrics import score_row

    score_row("上衣", "上衣")


def start(words: list[str], log: Path) -> tuple[int, int]:
    """Fork a run; its process id, and the pipe that it reports its phases through."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    code = 70
    try:
        os.close(reading)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        _report_phases(writing)
        sys.argv = [str(RECIPE), *words]
        runpy.run_path(str(RECIPE), run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        os._exit(code)


def run(
    words: list[str],
    log: Path,
    kill: Kill | None = None,
    signal_number: int = signal.SIGKILL,
    act: Callable[[], object] | None = None,
) -> Ended:
    """Start a run, kill it (or `act` in place of that) when `kill` says so, and wait for its end."""
    child, reading = start(words, log)
    phases: list[tuple[str, float]] = []
    seen, text, deadline = 0, b"", time.monotonic() + TIMEOUT_S
    entered: dict[str, float] = {}
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        while True:
            ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                os.kill(child, signal.SIGKILL)
                raise TimeoutError(f"a run took more than {TIMEOUT_S} s: {log.read_text()[-2000:]}")
            piece = pipe.read(4096)
            if not piece:
                break
            *lines, text = (text + piece).split(b"\n")
            for word, phase, when in map(json.loads, lines):
                if word == "leave":
                    phases.append((phase, when - entered[phase]))
                    continue
                entered[phase] = when
                if kill is not None and phase == kill.phase:
                    if seen == kill.occurrence:
                        time.sleep(max(0.0, when + kill.delay_s - time.monotonic()))
                        act() if act else os.kill(child, signal_number)
                    seen += 1
    status = os.waitpid(child, 0)[1]
    return Ended(os.waitstatus_to_exitcode(status), log.read_text(errors="replace"), phases)


def _report_phases(pipe: int) -> None:
    from importlib import import_module

    for phase, (module, name) in PHASES.items():
        owner: Any = import_module(module)
        *path, attribute = name.split(".")
        for part in path:
            owner = getattr(owner, part)
        setattr(owner, attribute, _reporting(getattr(owner, attribute), phase, pipe))


def _reporting(function: Any, phase: str, pipe: int) -> Any:
    def tell(word: str) -> None:
        os.write(pipe, json.dumps([word, phase, time.monotonic()]).encode() + b"\n")

    def reporting(*args: Any, **kwargs: Any) -> Any:
        tell("enter")
        try:
            return function(*args, **kwargs)
        finally:
            tell("leave")

    return reporting


def result(directory: Path) -> dict[str, Any]:
    """What a finished run is for: the trained weights, byte by byte, and the answers."""
    run_directory = directory / "run"
    answers = [json.loads(line) for line in (run_directory / "predictions.jsonl").read_bytes().splitlines()]
    return {
        "adapter": (run_directory / "adapter" / "adapter_model.safetensors").read_bytes(),
        "answers": [(answer["row_id"], answer["predict"], answer["labels"]) for answer in answers],
        "generated_predictions.txt": (run_directory / "generated_predictions.txt").read_bytes(),
    }

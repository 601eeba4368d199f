"""The recipe in several processes, one of which is hit: `deaths.py "WHERE HOW, WHERE HOW…" RECIPE_ARGUMENTS…`.

WHERE is `tokenisation`, `step N`, `evaluation`, `final-evaluation` or `prediction`, HOW one of kill, term, raise and
usr1 (to the script around the launcher). It happens on rank 1: the first of them in the launcher's first try, the
second in its second, and so on. Every try says first which marker the one before has left.
"""

import os
import runpy
import signal
import sys
import time
from pathlib import Path
from typing import Any

from softlaunch.data import dataset
from softlaunch.evaluation import predict
from softlaunch.training.trainer import CausalTrainer
from tests.faults.driver import RECIPE


def hit(how: str) -> None:
    """What happens to the process."""
    if how == "raise":
        raise RuntimeError("a defect of rank 1")
    sys.stdout.write(f"hit at {time.time()}\n")
    sys.stdout.flush()
    if how == "usr1":
        script = int(Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(script, signal.SIGUSR1)
        time.sleep(1)  # until it has come back as SIGTERM
    else:
        os.kill(os.getpid(), {"kill": signal.SIGKILL, "term": signal.SIGTERM}[how])


def main(where: str, how: str) -> None:
    """Run the recipe with the hit built in."""
    is_target = os.environ["RANK"] == "1"
    load_rows, training_step, collate = (
        dataset.load_rows,
        CausalTrainer.training_step,
        predict.GenerationCollator.__call__,
    )
    prediction_step = CausalTrainer.prediction_step

    def rows(*args: Any, **kwargs: Any) -> Any:
        if is_target and where == "tokenisation":
            time.sleep(1 if how == "term" else 0)  # the other one waits by then, or is at work
            hit(how)
        return load_rows(*args, **kwargs)

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if is_target and where == f"step {self.state.global_step}":
            hit(how)
        return training_step(self, *args, **kwargs)

    def evaluation_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal is_target
        if is_target and where == ("evaluation" if self.is_in_train else "final-evaluation"):
            is_target = False
            hit(how)
        return prediction_step(self, *args, **kwargs)

    calls = []

    def batch(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if is_target and where == "prediction" and len(calls) == (1 if how == "term" else 2):
            hit(how)
        return collate(self, *args, **kwargs)

    dataset.load_rows = rows
    CausalTrainer.training_step, predict.GenerationCollator.__call__ = step, batch
    CausalTrainer.prediction_step = evaluation_step
    runpy.run_path(str(RECIPE), run_name="__main__")


if __name__ == "__main__":
    hits, *words = sys.argv[1:]
    marker = Path(words[words.index("--output_dir") + 1]) / "preempted"
    if os.environ["RANK"] == "0" and marker.exists():
        sys.stdout.write(f"marker: {marker.read_text()}\n")
    sys.argv = [str(RECIPE), *words]
    where, how = (
        dict(enumerate(hits.split(", "))).get(int(os.environ["TORCHELASTIC_RESTART_COUNT"]), "no hit").rsplit(" ", 1)
    )
    main(where, how)

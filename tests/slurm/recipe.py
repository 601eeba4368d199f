"""recipes/ptuning_chatglm.py, without the minute in which DeepSpeed compiles an op for shared memory on CPUs.

SLOW_STEP_S: what every step takes longer in a job that has not been requeued yet, so that there is time to end it.
"""

import os
import runpy
import time
from pathlib import Path

RECIPE = Path(os.environ["PROJECT_ROOT"]) / "recipes" / "ptuning_chatglm.py"


def slow_down(seconds: float) -> None:
    from softlaunch.training.trainer import CausalTrainer

    training_step = CausalTrainer.training_step

    def slower(*args, **kwargs):
        time.sleep(seconds)
        return training_step(*args, **kwargs)

    CausalTrainer.training_step = slower


if __name__ == "__main__":
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        import deepspeed

        deepspeed.ops.__compatible_ops__ = {}
    if "SLOW_STEP_S" in os.environ and "SLURM_RESTART_COUNT" not in os.environ:
        slow_down(float(os.environ["SLOW_STEP_S"]))
    runpy.run_path(str(RECIPE), run_name="__main__")

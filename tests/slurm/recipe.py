"""recipes/ptuning_chatglm.py, without the minute in which DeepSpeed compiles an op for shared memory on CPUs."""

import os
import runpy
from pathlib import Path

RECIPE = Path(os.environ["SOFTLAUNCH_TEST_ROOT"]) / "recipes" / "ptuning_chatglm.py"

if __name__ == "__main__":
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        import deepspeed

        deepspeed.ops.__compatible_ops__ = {}
    runpy.run_path(str(RECIPE), run_name="__main__")

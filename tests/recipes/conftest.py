"""Recipes started as users start them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="package")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def start(cache):
    """Runs a recipe in the project's folder with these words behind it; returns the finished process."""

    def run(*words, launcher=(sys.executable,), code=0, recipe="recipes/ptuning_chatglm.py"):
        env = {**os.environ, "HF_DATASETS_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
        command = [*launcher, recipe, *map(str, words)]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == code, done.stderr[-4000:]
        return done

    return run

#!/usr/bin/env bash
# Lint, types and all tests but those that need a GPU, a Slurm cluster or long. Flags are handed on to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/environment.sh '[deepspeed,quantization,test]'

ruff format --check .
ruff check .
mypy
exec python -m pytest -m 'not gpu and not slurm and not slow' "$@"

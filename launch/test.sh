#!/usr/bin/env bash
# Lint, types and all tests but those that need a GPU or long; those on a two-node Slurm run where root finds slurm-wlm.
# Flags are handed on to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/environment.sh '[deepspeed,quantization,test]'

ruff format --check .
ruff check .
mypy
exec python -m pytest -m 'not gpu and not slow' "$@"

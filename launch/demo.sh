#!/usr/bin/env bash
# P-Tuning v2 of the embedded demo base: scores and answers before and after. Flags are handed on to the recipe.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/environment.sh ''

place=cpu
if command -v nvidia-smi > /dev/null && nvidia-smi > /dev/null 2>&1; then place=single_gpu; fi
exec accelerate launch --config_file "launch/accelerate/$place.yaml" \
    recipes/ptuning_chatglm.py recipes/args/demo.json "$@"

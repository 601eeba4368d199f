#!/usr/bin/env bash
# demo.sh: P-Tuning v2 of the embedded demo base: scores and answers before and after.
# demo.sh classify: titles into eight classes with LoRA and with full fine-tuning, and the two compared.
# Flags are handed on to the recipe.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/environment.sh ''

place=cpu
if command -v nvidia-smi > /dev/null && nvidia-smi > /dev/null 2>&1; then place=single_gpu; fi
launch=(accelerate launch --config_file "launch/accelerate/$place.yaml")

if [ "${1:-}" = classify ]; then
    shift
    for method in lora full; do
        "${launch[@]}" recipes/classify.py "recipes/args/classify_demo_$method.json" "$@"
    done
    exec softlaunch compare output/demo-titles/lora output/demo-titles/full --output output/demo-titles/comparison.png
fi
exec "${launch[@]}" recipes/ptuning_chatglm.py recipes/args/demo.json "$@"

"""The other recipes as a user starts them, on the demo's base: what they leave, and what they say instead."""

import json
import re

import pytest

from tests.recipes.test_ptuning import BASE, TRAIN_FILE, files, records

pytestmark = pytest.mark.recipe

FEW = "--max_steps 2 --max_train_samples 32 --max_eval_samples 3 --max_predict_samples 3 --val_max_target_length 8"
RESULTS = {
    *("record.json", "run.json", ".lock", "metrics.jsonl", "predictions.jsonl", "generated_predictions.txt"),
    *("probes.jsonl", "rows_by_score.jsonl"),
    *("train_results.json", "eval_results.json", "predict_results.json", "all_results.json"),
}


def words(recipe_args, output_dir, more=""):
    return [f"recipes/args/{recipe_args}.json", *FEW.split(), "--output_dir", output_dir, *more.split()]


def test_argument_file_of_the_original_lora_variant(start, tmp_path):
    """As it is in use, with other paths; the flags only make it short."""
    file = tmp_path / "adgen_original.json"
    file.write_text(
        f"""{{
    "do_train": true,
    "train_file": "{TRAIN_FILE}",
    "validation_file": "recipes/demo/test.json",
    "preprocessing_num_workers": 10,
    "prompt_column": "content",
    "response_column": "summary",
    "overwrite_cache": true,
    "model_name_or_path": "{BASE}",
    "output_dir": "output/adgen-chatglm2-6b-lora_version",
    "overwrite_output_dir": true,
    "max_source_length": 64,
    "max_target_length": 128,
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 16,
    "predict_with_generate": true,
    "max_steps": 3000,
    "logging_steps": 10,
    "save_steps": 100,
    "learning_rate": 2e-5,
    "lora_r": 32,
    "model_parallel_mode": true,
    "output_dir": "{tmp_path}/run"
}}""",
        encoding="utf-8",
    )
    done = start(file, "--max_steps", 1, "--max_train_samples", 20, recipe="recipes/lora_chatglm.py")
    assert "output_dir" in done.stderr
    assert "model_parallel_mode has no effect" in done.stderr
    assert re.search(r"trained +│ [\d,]+ \(\d", done.stdout)
    assert "self_attn.q_proj" in done.stdout
    adapter = tmp_path / "run" / "adapter"
    assert files(adapter) == {"adapter_config.json", "adapter_model.safetensors", "softlaunch.json"}
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (32, 32)
    assert set(config["target_modules"]) == {"q_proj", "k_proj", "v_proj"}


def test_qlora_trains_and_is_evaluated(start, tmp_path):
    run, again = tmp_path / "run", tmp_path / "again"
    recipe = "recipes/lora_chatglm.py"
    start(*words("demo_lora", run, "--quantization_bit 4"), recipe=recipe)
    evaluate = f"--no_do_train --quantization_bit 4 --lora_checkpoint {run} --no_compare_with_base"
    start(*words("demo_lora", again, evaluate), recipe=recipe)
    assert [r["predict"] for r in records(again / "predictions.jsonl")] == [
        r["predict"] for r in records(run / "predictions.jsonl")
    ]


def test_full_fine_tuning_leaves_a_model_that_answers_alike(start, tmp_path):
    recipe = "recipes/finetune_chatglm.py"
    start(*words("demo_full", tmp_path, "--save_format chatglm"), recipe=recipe)
    left = files(tmp_path)
    assert {name for name in left if "/" not in name} == RESULTS
    assert {
        "model/config.json",
        "model/tokenizer.model",
        "checkpoint-2/model.safetensors",
        "checkpoint-2/trainer_state.json",
    } <= left
    answers = records(tmp_path / "predictions.jsonl")
    (tmp_path / "predictions.jsonl").unlink()
    start(*words("demo_full", tmp_path, "--no_do_train"), recipe=recipe)
    assert records(tmp_path / "predictions.jsonl") == answers  # the digest of the model in each of them too


@pytest.mark.parametrize(
    ("recipe", "args", "more", "message"),
    [
        ("lora_chatglm", "demo_lora", "--lora_target_modules w_q", "there are down_proj, embed_tokens, gate_up_proj"),
        ("lora_chatglm", "demo_lora", "--tuning ia3", "two methods are asked for at once"),
        ("finetune_chatglm", "demo_full", "--quantization_bit 8", "quantized weights cannot be trained"),
    ],
)
def test_wrong_input_ends_with_one_message(recipe, args, more, message, start, tmp_path):
    done = start(*words(args, tmp_path, more), recipe=f"recipes/{recipe}.py", code=2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr

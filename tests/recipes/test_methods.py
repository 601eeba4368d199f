"""The other recipes as a user starts them, on the demo's base: what they leave, and what they say instead."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from softlaunch.models import load_model
from tests.recipes.test_ptuning import BASE, ROOT, TRAIN_FILE, cache, files, records, start  # noqa: F401

pytestmark = pytest.mark.recipe

FEW = "--max_steps 2 --max_train_samples 32 --max_eval_samples 3 --max_predict_samples 3 --val_max_target_length 8"
RESULTS = {
    *("record.json", "metrics.jsonl", "predictions.jsonl", "generated_predictions.txt"),
    *("train_results.json", "eval_results.json", "predict_results.json", "all_results.json"),
}


def words(recipe_args, output_dir, more=""):
    return [f"recipes/args/{recipe_args}.json", *FEW.split(), "--output_dir", output_dir, *more.split()]


def test_argument_file_of_the_original_lora_variant(start, tmp_path):  # noqa: F811
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
    assert "parameters are trained" in done.stderr
    adapter = tmp_path / "run" / "adapter"
    assert files(adapter) == {"adapter_config.json", "adapter_model.safetensors", "softlaunch.json"}
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (32, 32)
    assert set(config["target_modules"]) == {"q_proj", "k_proj", "v_proj"}


def test_qlora_trains_is_evaluated_and_trained_further(start, tmp_path):  # noqa: F811
    run, again, further = (tmp_path / name for name in ("run", "again", "further"))
    recipe = "recipes/lora_chatglm.py"
    start(*words("demo_lora", run, "--quantization_bit 4"), recipe=recipe)
    evaluate = f"--no_do_train --quantization_bit 4 --lora_checkpoint {run} --no_compare_with_base"
    start(*words("demo_lora", again, evaluate), recipe=recipe)
    assert [r["predict"] for r in records(again / "predictions.jsonl")] == [
        r["predict"] for r in records(run / "predictions.jsonl")
    ]
    start(*words("demo_lora", further, f"--quantization_bit 4 --adapter {run}/adapter"), recipe=recipe)
    assert (further / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("layout", ["glm", "chatglm"])
def test_full_fine_tuning_leaves_a_model_that_answers_alike(layout, start, tmp_path):  # noqa: F811
    recipe = "recipes/finetune_chatglm.py"
    start(*words("demo_full", tmp_path, f"--save_format {layout}"), recipe=recipe)
    left = files(tmp_path)
    assert {name for name in left if "/" not in name} == RESULTS
    assert {"model/config.json", "checkpoint-2/model.safetensors", "checkpoint-2/trainer_state.json"} <= left
    assert "model/tokenizer.model" if layout == "chatglm" else "model/tokenizer.json" in left
    answers = records(tmp_path / "predictions.jsonl")
    (tmp_path / "predictions.jsonl").unlink()
    start(*words("demo_full", tmp_path, "--no_do_train"), recipe=recipe)
    assert records(tmp_path / "predictions.jsonl") == answers  # the digest of the model in each of them too
    if layout == "glm":
        ids = torch.tensor([[5, 17, 33, 8]])
        stock, native = AutoModelForCausalLM.from_pretrained(tmp_path / "model"), load_model(str(tmp_path / "model"))
        assert torch.equal(stock(ids).logits, native(ids).logits)


@pytest.mark.parametrize(
    ("recipe", "args", "more", "message"),
    [
        ("lora_chatglm", "demo_lora", "--lora_target_modules w_q", "there are down_proj, embed_tokens, gate_up_proj"),
        ("lora_chatglm", "demo_lora", "--lora_r 0", "must be a whole number at least 1"),
        ("lora_chatglm", "demo_lora", "--tuning ia3", "two methods are asked for at once"),
        ("prompt_tuning", "demo_prompt", "--pre_seq_len null", "pre_seq_len is not set"),
        ("finetune_chatglm", "demo_full", "--quantization_bit 8", "quantized weights cannot be trained"),
        ("finetune_chatglm", "demo_full", "--compare_with_base", "change the base itself"),
    ],
)
def test_wrong_input_ends_with_one_message(recipe, args, more, message, start, tmp_path):  # noqa: F811
    done = start(*words(args, tmp_path, more), recipe=f"recipes/{recipe}.py", code=2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr

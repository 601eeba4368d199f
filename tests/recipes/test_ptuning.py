"""recipes/ptuning_chatglm.py as a user starts it, on the demo's base: what it leaves, and what it says instead."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

BASE = "recipes/demo/base"
TRAIN_FILE = "recipes/demo/train.json"

pytestmark = pytest.mark.recipe

CHECKPOINT_FILES = {
    *("adapter_config.json", "adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"),
    *("trainer_state.json", "manifest.json"),
}


def demo(output_dir, **options):
    """The demo's arguments with a few steps and rows, and `options` on top."""
    few = {"max_steps": 4, "logging_steps": 4, "max_train_samples": 64, "max_eval_samples": 5, "max_predict_samples": 5}
    few |= {"val_max_target_length": 8, "output_dir": output_dir}
    words = ["recipes/args/demo.json"]
    for name, value in {**few, **options}.items():
        words += [f"--{name}", *([] if value is True else [value])]
    return words


def files(directory: Path) -> set[str]:
    return {str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file()}


def records(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_demo_leaves_these_files_and_prints_the_comparison(start, tmp_path):
    accelerate = (
        str(Path(sys.executable).parent / "accelerate"),
        "launch",
        "--config_file",
        "launch/accelerate/cpu.yaml",
    )
    done = start(*demo(tmp_path, report_to="tensorboard"), launcher=accelerate)
    checkpoint = {f"checkpoint-4/{name}" for name in CHECKPOINT_FILES}
    boards = {name for name in files(tmp_path) if name.startswith("runs/")}
    assert any("events.out.tfevents" in name for name in boards)
    assert files(tmp_path) - boards == checkpoint | {
        *("record.json", "metrics.jsonl", "predictions.jsonl", "base/predictions.jsonl", "generated_predictions.txt"),
        *("run.json", ".lock", "probes.jsonl", "rows_by_score.jsonl"),
        *("adapter/adapter_config.json", "adapter/adapter_model.safetensors"),
        *("train_results.json", "eval_results.json", "predict_results.json", "all_results.json"),
    }
    answers = records(tmp_path / "predictions.jsonl")
    assert [answer["row_id"] for answer in answers] == [0, 1, 2, 3, 4]
    assert [set(r) for r in records(tmp_path / "generated_predictions.txt")] == [{"labels", "predict"}] * 5
    scores = json.loads((tmp_path / "predict_results.json").read_text())
    assert {"predict_rouge-l", "predict_bleu-4", "predict_metric_version"} <= set(scores)
    assert {"predict_empty_predictions", "predict_repeated_predictions", "predict_looping_predictions"} <= set(scores)
    assert [(r["step"], r["row_id"]) for r in records(tmp_path / "probes.jsonl")] == [
        (step, row) for step in (0, 4) for row in (0, 1, 2)
    ]
    assert sorted(row["row_id"] for row in records(tmp_path / "rows_by_score.jsonl")) == [0, 1, 2, 3, 4]
    assert len([line for line in done.stdout.splitlines() if line.startswith("step ")]) == 1
    assert "%|" not in done.stdout + done.stderr, "a progress bar outside of a terminal"
    for title in ("Training", "Before training and after 4 steps", "Worst and best of 5 rows", "5 held-out rows"):
        assert title in done.stdout
    assert all(word in done.stdout for word in ("before", "after", "reference"))
    assert (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size < 3_000_000


def test_bf16_trains_on_the_cpu_and_picks_the_best_checkpoint_by_rouge(start, tmp_path):
    start(
        *demo(tmp_path, bf16=True, eval_strategy="steps", eval_steps=2, save_steps=2, save_total_limit=2),
        *("--load_best_model_at_end", "--metric_for_best_model", "rouge-l", "--predict_with_generate"),
    )
    state = json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())
    by_step = {r["step"]: r["eval_rouge-l"] for r in state["log_history"] if "eval_rouge-l" in r}
    assert set(by_step) == {2, 4}
    assert state["best_metric"] == max(by_step.values())
    best, saved = (
        load_file(Path(d) / "adapter_model.safetensors") for d in (state["best_model_checkpoint"], tmp_path / "adapter")
    )
    for name, tensor in saved.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, best[name])


def test_original_train_flags_then_original_evaluate_flags(start, tmp_path):
    """The flags of the original scripts, with other paths and fewer steps."""
    rows = "recipes/demo/test.json"
    common = (
        f"--validation_file {rows} --preprocessing_num_workers 2 --prompt_column content --response_column summary "
        f"--overwrite_cache --model_name_or_path {BASE} --output_dir {tmp_path} --overwrite_output_dir "
        "--max_source_length 64 --per_device_eval_batch_size 1 --predict_with_generate --pre_seq_len 128"
    ).split()
    train = (
        f"--do_train --train_file {TRAIN_FILE} --max_target_length 128 --per_device_train_batch_size 1 "
        "--gradient_accumulation_steps 16 --logging_steps 10 --save_steps 1000 --learning_rate 2e-2 --max_steps 2"
    ).split()
    done = start(*train, *common)
    assert "overwrite_output_dir" in done.stderr
    evaluate = f"--do_predict --test_file {rows} --max_target_length 8 --max_predict_samples 3".split()
    start(*evaluate, *common, "--ptuning_checkpoint", tmp_path / "checkpoint-2")
    assert [r["row_id"] for r in records(tmp_path / "predictions.jsonl")] == [0, 1, 2]
    assert files(tmp_path / "checkpoint-2") == CHECKPOINT_FILES


def test_lora_together_with_the_prefix(start, tmp_path):
    file = tmp_path / "adgen_original.json"
    file.write_text(
        f"""{{"do_train": true, "train_file": "{TRAIN_FILE}", "validation_file": "recipes/demo/test.json",
        "preprocessing_num_workers": 1, "prompt_column": "content", "overwrite_cache": true,
        "model_name_or_path": "{BASE}", "output_dir": "output/other", "overwrite_output_dir": true,
        "max_source_length": 64, "max_target_length": 128, "per_device_train_batch_size": 1,
        "response_column": "summary", "per_device_eval_batch_size": 1,
        "gradient_accumulation_steps": 16, "predict_with_generate": true,
        "max_steps": 3000, "logging_steps": 10, "save_steps": 100, "learning_rate": 2e-5, "lora_r": 32,
        "model_parallel_mode": true, "output_dir": "{tmp_path}/run"}}""",
        encoding="utf-8",
    )
    done = start(file, "--pre_seq_len", 4, "--max_steps", 1, "--max_train_samples", 20)
    assert "output_dir" in done.stderr
    adapter = tmp_path / "run" / "adapter"
    assert all((folder / "adapter_model.safetensors").is_file() for folder in (adapter, adapter / "lora"))


def test_multi_turn_rows(start, tmp_path):
    turns = [["你们家有裙子吗", "有的，这里都是裙子。"]]
    rows = [
        {"prompt": "有红色的吗", "response": "红色的裙子有两款。", "history": turns if i % 2 else None}
        for i in range(8)
    ]
    file = tmp_path / "rows.json"
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    files = {"train_file": file, "validation_file": file, "test_file": file}
    columns = {"prompt_column": "prompt", "response_column": "response", "history_column": "history"}
    start(*demo(tmp_path / "run", **files, **columns, train_on_all_turns=True, max_source_length=128))
    assert len(records(tmp_path / "run" / "predictions.jsonl")) == 5


def test_a_run_goes_on_from_its_checkpoint_and_restart_begins_anew(start, tmp_path):
    few = {"save_steps": 2, "save_total_limit": 2, "do_predict": "false", "do_eval": "false", "logging_steps": 1}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    start(*demo(whole, **few))
    start(*demo(cut, **few))
    shutil.rmtree(cut / "checkpoint-4")
    shutil.rmtree(cut / "adapter")
    done = start(*demo(cut, **few), "--no_restart")
    assert "checkpoint-2" in done.stderr
    adapters = [load_file(d / "adapter" / "adapter_model.safetensors") for d in (whole, cut)]
    assert all(torch.equal(tensor, adapters[1][name]) for name, tensor in adapters[0].items())
    start(*demo(cut, **{**few, "max_steps": 2, "restart": True}))
    assert [p.name for p in cut.glob("checkpoint-*")] == ["checkpoint-2"]
    assert [r["step"] for r in records(cut / "metrics.jsonl")] == [1, 2, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rat": "1"}, "did you mean --learning_rate?"),
        ({"model_name_or_path": "recipes/demo"}, "no config.json"),
        ({"train_file": "nowhere.json"}, "nowhere.json"),
        ({"prompt_column": "contents"}, "content"),
        ({"adapter": "recipes/demo"}, "no adapter here"),
    ],
)
def test_wrong_input_ends_with_one_message(options, message, start, tmp_path):
    done = start(*demo(tmp_path, **options), code=2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "adapter").exists()

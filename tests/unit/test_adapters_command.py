"""`softlaunch adapters` on runs, checkpoints, tuned models, bare and damaged adapters."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from softlaunch.models import load_model
from softlaunch.tuning import add_prefix, export_adapter
from tests.bases import Golden, random_base

COMMAND = [sys.executable, "-c", "from softlaunch.cli import main; main()", "adapters"]
_NO_TORCH = "import sys; sys.modules['torch'] = None; from softlaunch.cli import main; main()"


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("adapters")
    run = root / "outputs" / "run"
    base = load_model(str(Golden.read("chatglm2").write(root / "base")))
    prefix = add_prefix(base, num_virtual_tokens=5, projection=True)
    for folder in ("adapter", "checkpoint-20"):
        prefix.save_pretrained(run / folder)
    record = {"arguments": {"model": {"model_name_or_path": str(root / "base"), "quantization_bit": 4}}}
    files = {
        "record.json": record,
        "predict_results.json": {"predict_rouge-l": 68.421, "predict_bleu-4": 52.94, "predict_rows": 80},
        "eval_results.json": {"eval_loss": 1.25},
        "checkpoint-20/trainer_state.json": {
            "global_step": 20,
            "log_history": [{"step": 10, "eval_loss": 9.0}, {"step": 20, "eval_loss": 3.5, "eval_rouge-l": 11.0}],
        },
    }
    for name, content in files.items():
        (run / name).write_text(json.dumps(content))
    (run / "metrics.jsonl").write_text('{"step": 10}\n{"step": 40, "loss": 1.0}\n')
    export_adapter(prefix, root / "original", format="original")
    export_adapter(prefix, root / "peft", format="peft")
    get_peft_model(random_base("llama"), LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(root / "lora")
    for name, cut in (("cut", -10), ("header", 6), ("garbage", 0)):
        add_prefix(random_base("glm"), num_virtual_tokens=3).save_pretrained(root / "damaged" / name)
        weights = root / "damaged" / name / "adapter_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:cut] if cut else b"\xff" * 100)
    (root / "damaged" / "cut" / "README.md").write_text("")
    (root / "damaged" / "nothing").mkdir()
    (root / "damaged" / "nothing" / "adapter_config.json").write_text("{}")
    (root / "damaged" / "config").mkdir()
    (root / "damaged" / "config" / "adapter_config.json").write_text("{")
    for folder, tuning in (("full", {}), ("freeze", {"freeze_trainable_layers": 2})):
        random_base("glm").save_pretrained(root / "tuned" / folder / "model")
        record = {"arguments": {"model": {"model_name_or_path": "base"}, "tuning": tuning}}
        (root / "tuned" / folder / "record.json").write_text(json.dumps(record))
    (root / "tuned" / "full" / "predict_results.json").write_text('{"predict_bleu-4": 8.01}')
    random_base("glm").save_pretrained(root / "tuned" / "merged")
    (root / "tuned" / "merged" / "merge.json").write_text('{"base": "base", "adapter": "lora"}')
    (root / "model").mkdir()
    torch.save({"lm_head.weight": torch.ones(2)}, root / "model" / "pytorch_model.bin")
    return root


def test_what_each_directory_holds(directory):
    done = subprocess.run([sys.executable, "-c", _NO_TORCH, "adapters", directory], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    header, *lines = [line.split("\t") for line in done.stdout.splitlines()]
    found = {line[0].removeprefix(f"{directory}/"): dict(zip(header[1:], line[1:], strict=True)) for line in lines}
    assert list(found) == [
        *(f"damaged/{name}" for name in ("config", "cut", "garbage", "header", "nothing")),
        *("lora", "original", "outputs/run/adapter", "outputs/run/checkpoint-20", "peft"),
        *("tuned/freeze/model", "tuned/full/model", "tuned/merged"),
    ]
    # an embedding of 5 × 128 and an MLP 128 → 64 → 128: see PrefixEncoder
    config = Golden.read("chatglm2").meta["config"]
    width, hidden = (
        2 * config["num_layers"] * config["multi_query_group_num"] * config["kv_channels"],
        config["hidden_size"],
    )
    parameters = str(5 * width + width * hidden + hidden + hidden * width + width)
    base = str(directory / "base")
    run = found["outputs/run/adapter"]
    size = sum(file.stat().st_size for file in (directory / "outputs" / "run" / "adapter").iterdir())
    assert run == {
        "method": "P-Tuning v2, 5 tokens, projection, 4-bit base",
        "base": base,
        "parameters": parameters,
        "size": str(size),
        "steps": "40",
        "rouge-l": "68.42",
        "bleu-4": "52.94",
        "loss": "1.2500",
        "accuracy": "–",
        "f1_macro": "–",
    }
    changed = {"steps": "20", "rouge-l": "11.00", "bleu-4": "–", "loss": "3.5000"}
    assert found["outputs/run/checkpoint-20"] == {**run, **changed}
    assert found["original"]["method"] == "P-Tuning v2 (original)"
    assert found["original"]["parameters"] == parameters
    assert found["peft"]["parameters"] == str(5 * width)
    assert found["peft"]["method"] == "PEFT prefix tuning, 5 tokens"
    assert found["lora"]["method"] == "LoRA, r 2"
    assert found["lora"]["parameters"] == str(3 * 2 * (64 + 64))
    size = (directory / "tuned" / "full" / "model" / "model.safetensors").stat().st_size
    full = found["tuned/full/model"]
    assert (full["method"], full["base"], full["bleu-4"]) == ("full fine-tuning", "base", "8.01")
    assert full["parameters"] == str(sum(p.numel() for p in random_base("glm").parameters()))
    assert full["size"] == str(size)
    assert found["tuned/freeze/model"]["method"] == "last 2 layers"
    assert (found["tuned/merged"]["method"], found["tuned/merged"]["base"]) == ("merged", "base")
    for name in ("cut", "garbage", "header"):
        assert "damaged: adapter_model.safetensors is cut off or damaged" in found[f"damaged/{name}"]["method"]
    assert "adapter_model.safetensors is missing" in found["damaged/nothing"]["method"]
    assert "not valid JSON" in found["damaged/config"]["method"]


def test_table_fits_into_a_terminal(directory):
    """All numbers are whole in 80 columns."""
    master, slave = pty.openpty()
    environment = {**os.environ, "COLUMNS": "80", "TERM": "dumb"}
    subprocess.run([*COMMAND, directory / "outputs"], stdout=slave, check=True, env=environment)
    os.close(slave)
    shown = os.read(master, 100_000).decode()
    os.close(master)
    assert all(len(line) <= 80 for line in shown.splitlines())
    for text in ("68.42", "52.94", "1.25", "11.00", "P-Tuning v2", "run/adapter"):
        assert text in shown


def test_no_such_directory(tmp_path, softlaunch):
    assert softlaunch("adapters", tmp_path / "absent") == (2, f"error: {tmp_path}/absent: no such directory\n")

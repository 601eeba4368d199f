"""What `launch/demo.sh classify` starts, and the recipe that pretrains an encoder, with few steps."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "recipes" / "demo_titles"

pytestmark = pytest.mark.recipe


def start(*words, cache):
    env = {**os.environ, "HF_DATASETS_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout + done.stderr


def test_demo_classifies_in_two_ways_and_compares_them(tmp_path):
    script = (ROOT / "launch" / "demo.sh").read_text(encoding="utf-8")
    methods = re.search(r"for method in (.*); do", script)[1].split()
    assert methods == ["lora", "full"]
    accuracies = {}
    for method in methods:
        few = ["--max_steps", 50, "--output_dir", tmp_path / method]
        start("recipes/classify.py", f"recipes/args/classify_demo_{method}.json", *few, cache=tmp_path / "cache")
        results = json.loads((tmp_path / method / "predict_results.json").read_text(encoding="utf-8"))
        accuracies[method] = results["predict_accuracy"]
    assert min(accuracies.values()) > 0.8  # of eight classes, after one epoch
    compare = shlex.split(
        re.search(r"exec softlaunch (compare .*)", script)[1].replace("output/demo-titles", str(tmp_path))
    )
    text = start("-c", "from softlaunch.cli import main; main()", *compare, cache=tmp_path / "cache")
    assert all(f"{accuracy:.4f}" in text for accuracy in accuracies.values())
    assert (tmp_path / "comparison.png").stat().st_size > 10_000
    assert "–" not in text  # nothing that the table shows is missing from the runs' files


def test_pretraining_goes_on_and_leaves_an_encoder_that_can_be_tuned(tmp_path):
    """A vocabulary and two kinds of files; the loss falls; a second start with more steps goes on from the first."""
    texts = tmp_path / "titles.txt"
    titles = [json.loads(line)["title"] for line in (DEMO / "validation.json").read_text(encoding="utf-8").splitlines()]
    texts.write_text("\n".join([*titles, ""]), encoding="utf-8")
    words = ["recipes/pretrain_encoder.py", "--tokenizer", DEMO / "base" / "vocab.txt", "--text_column", "title"]
    words += ["--train_file", texts, DEMO / "train.json", "--validation_file", DEMO / "test.json", "--hidden_size", 64]
    words += ["--num_layers", 1, "--max_length", 32, "--output_dir", tmp_path / "run", "--learning_rate", 3e-3]
    words += ["--per_device_train_batch_size", 32, "--logging_steps", 20, "--save_steps", 20, "--report_to", "none"]
    words += ["--max_steps", 100, "--save_dtype", "float16", "--mlm_probability", 0.3]
    start(*words, "--max_steps", 20, cache=tmp_path / "cache")
    first = json.loads((tmp_path / "run" / "eval_results.json").read_text())["eval_loss"]
    assert "going on from" in start(*words, cache=tmp_path / "cache")
    state = json.loads((tmp_path / "run" / "checkpoint-100" / "trainer_state.json").read_text())
    assert [record["step"] for record in state["log_history"] if "loss" in record] == [20, 40, 60, 80, 100]
    second = json.loads((tmp_path / "run" / "eval_results.json").read_text())["eval_loss"]
    assert second < first - 0.2
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "model", num_labels=8)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    assert str(model.dtype) == "torch.float16"
    assert tokenizer.model_max_length == model.config.max_position_embeddings == 32
    expected = AutoTokenizer.from_pretrained(DEMO / "base")(titles[:20])["input_ids"]
    assert tokenizer(titles[:20])["input_ids"] == expected

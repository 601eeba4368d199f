"""Adapters merged into their bases: stock transformers computes the same from the result."""

import json
import re
from pathlib import Path

import peft
import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from softlaunch.errors import CheckpointError
from softlaunch.models import load_model, load_tokenizer
from softlaunch.models.encoder import load_encoder
from softlaunch.tuning import add_prefix, load_adapter
from tests.bases import CONFIGS, batch, random_base
from tests.encoders import write_encoder
from tests.tokenizer_files import byte_tokenizer

DEMO = Path(__file__).parents[2] / "recipes" / "demo"
ROWS = batch([[5, 17, 33, 8, 60, 41, 9], [70, 3, 25, 90]], "right")
METHODS = {
    "lora": lambda: LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
    "dora": lambda: LoraConfig(
        r=4, target_modules=["q_proj", "v_proj"], use_dora=True, use_rslora=True, task_type="CAUSAL_LM"
    ),
    "ia3": lambda: IA3Config(
        target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"
    ),
}


def write_run(directory: Path, method: str, base: str | Path, *, quantization_bit: int | None = None) -> Path:
    """A run on the demo base with an adapter that changes its answers, as training does."""
    torch.manual_seed(0)
    model = load_model(str(base), dtype=torch.float32, quantization_bit=quantization_bit)
    tuned = get_peft_model(model, METHODS[method]())
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_" in name or "ia3_" in name:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    tuned.save_pretrained(directory / "adapter", save_embedding_layers=False)
    record = {
        "model": {"model_name_or_path": str(base), "quantization_bit": quantization_bit},
        "data": {
            "validation_file": str(DEMO / "validation.json"),
            "prompt_column": "content",
            "response_column": "summary",
        },
    }
    (directory / "record.json").write_text(json.dumps({"arguments": record}))
    return directory


def logits(model) -> torch.Tensor:
    return model.eval()(**ROWS).logits


@pytest.mark.parametrize("method", METHODS)
def test_merged_model_computes_the_same(method, tmp_path, softlaunch):
    run = write_run(tmp_path / "run", method, DEMO / "base")
    code, said = softlaunch("merge", run, tmp_path / "merged", "--dtype", "float32")
    assert code == 0, said
    assert "8 rows: the merged logits differ" in said
    base = load_model(str(DEMO / "base"), dtype=torch.float32)
    bare = logits(base)
    expected = logits(PeftModel.from_pretrained(base, run / "adapter"))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert merged.dtype == torch.float32
    torch.testing.assert_close(logits(merged), expected, atol=1e-4, rtol=0)
    assert (expected - bare).abs().max() > 0.1
    ours, theirs = load_tokenizer(DEMO / "base"), AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert theirs("衬衫很舒适")["input_ids"] == ours("衬衫很舒适")["input_ids"]
    written = json.loads((tmp_path / "merged" / "merge.json").read_text())
    assert written["rows"] == str(DEMO / "validation.json")
    assert 0 < written["difference"] < 1e-3 * written["effect"]
    with pytest.raises(CheckpointError, match=r"is merged into .* already"):
        load_adapter(load_model(str(tmp_path / "merged")), run)


def test_four_bit_run_goes_into_the_sixteen_bit_base_and_the_released_layout(tmp_path, softlaunch):
    run = write_run(tmp_path / "run", "lora", DEMO / "base", quantization_bit=4)
    code, said = softlaunch("merge", run / "adapter", tmp_path / "merged", "--layout", "chatglm")
    assert code == 0, said
    assert "It was trained on this base in 4 bits" in said
    tuned = PeftModel.from_pretrained(load_model(str(DEMO / "base"), dtype=torch.float16), run / "adapter")
    merged = load_model(str(tmp_path / "merged"), dtype=torch.float16)
    torch.testing.assert_close(logits(merged), logits(tuned), atol=0.05, rtol=0)
    assert {p.name for p in (tmp_path / "merged").iterdir()} == {p.name for p in (DEMO / "base").iterdir()} | {
        "merge.json"
    }
    before, after = (json.loads((d / "config.json").read_text()) for d in (DEMO / "base", tmp_path / "merged"))
    assert before == after


def test_released_layout_from_a_base_that_is_in_transformers_layout(tmp_path, softlaunch):
    assert softlaunch("convert", DEMO / "base", tmp_path / "base", "--to", "glm")[0] == 0
    run = write_run(tmp_path / "run", "lora", tmp_path / "base")
    code, said = softlaunch("merge", run, tmp_path / "merged", "--layout", "chatglm", "--dtype", "float32")
    assert code == 0, said
    tuned = PeftModel.from_pretrained(load_model(str(tmp_path / "base"), dtype=torch.float32), run / "adapter")
    merged = load_model(str(tmp_path / "merged"), dtype=torch.float32)
    torch.testing.assert_close(logits(merged), logits(tuned), atol=1e-4, rtol=0)
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["model_type"] == "chatglm"
    text = "衬衫很舒适"
    assert load_tokenizer(tmp_path / "merged")(text)["input_ids"] == load_tokenizer(DEMO / "base")(text)["input_ids"]


def test_other_architecture_without_rows(tmp_path, softlaunch):
    """An adapter alone, without its run; the base in another place than it says."""
    CONFIGS["llama"]().save_pretrained(tmp_path / "base")
    torch.manual_seed(0)
    config = CONFIGS["llama"]()
    config.vocab_size = 300
    base = AutoModelForCausalLM.from_config(config)
    base.save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    tuned = get_peft_model(base, LoraConfig(r=2, init_lora_weights=False, modules_to_save=["lm_head"]))
    tuned.save_pretrained(tmp_path / "adapter")
    expected = logits(tuned)
    code, said = softlaunch("merge", tmp_path / "adapter", tmp_path / "merged", "--base", tmp_path / "base")
    assert code == 0, said
    assert "compared are built-in texts" in said
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(merged), expected, atol=1e-4, rtol=0)
    code, said = softlaunch(
        "merge", tmp_path / "adapter", tmp_path / "out", "--base", tmp_path / "base", "--layout", "glm"
    )
    assert code == 2
    assert "model_type is 'llama'" in said


@pytest.mark.parametrize("case", ["tolerance", "nothing is merged", "disk"])
def test_refusals_leave_nothing(case, tmp_path, small_disk, softlaunch, monkeypatch):
    run = write_run(tmp_path / "run", "lora", DEMO / "base")
    words, message = (), "No space left on device. Nothing of it was left behind"
    if case == "tolerance":
        words, message = ("--tolerance", "1e-5"), "allowed are 0.0%"
    elif case == "nothing is merged":
        monkeypatch.setattr(peft.PeftModel, "merge_and_unload", lambda model, **_: model.unload(), raising=False)
        message = "by 100.00% of what the adapter changes"
    monkeypatch.setattr("softlaunch.new_directory._GIB", 1024**3)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1e12}))  # it fills up meanwhile
    code, said = softlaunch("merge", run, small_disk / "merged", *words)
    assert code == 2
    assert message in said
    assert not list(small_disk.iterdir())


def test_what_cannot_be_merged(tmp_path, softlaunch):
    base = DEMO / "base"
    add_prefix(random_base("glm"), num_virtual_tokens=3).save_pretrained(tmp_path / "prefix")
    prompt = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    get_peft_model(random_base("glm"), prompt).save_pretrained(tmp_path / "prompt")
    (tmp_path / "original").mkdir()
    torch.save({}, tmp_path / "original" / "pytorch_model.bin")
    get_peft_model(random_base("glm"), METHODS["lora"]()).save_pretrained(tmp_path / "other")
    write_run(tmp_path / "damaged", "lora", base)
    weights = tmp_path / "damaged" / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    (tmp_path / "full" / "model").mkdir(parents=True)
    (tmp_path / "full" / "model" / "config.json").write_text("{}")
    encoder = load_encoder(str(write_encoder(tmp_path / "bert")), ("a", "b"))
    get_peft_model(encoder.model, LoraConfig(task_type="SEQ_CLS")).save_pretrained(tmp_path / "classifier")
    for source, message in (
        ("classifier", "belongs to a classifier"),
        ("prefix", "is a prefix: keys and values .* cannot be merged. Load it .* --to peft.* train a LoRA"),
        ("original", "is a prefix: keys and values"),
        ("prompt", "is a soft prompt"),
        ("other", "other: "),
        ("damaged", "damaged"),
        ("full", "there is no adapter; the model is in .*full/model"),
        ("nothing", "no such directory"),
    ):
        code, said = softlaunch("merge", tmp_path / source, tmp_path / "merged", "--base", base)
        assert code == 2, said
        assert re.search(message, said), said
        assert not (tmp_path / "merged").exists()
    run = write_run(tmp_path / "run", "lora", base)
    code, said = softlaunch("merge", run, tmp_path / "merged", "--base", tmp_path / "bert")  # with the run's rows
    assert code == 2
    assert "run/adapter: the adapter does not fit this base" in said
    code, said = softlaunch("merge", tmp_path / "other", tmp_path / "merged", "--base", base, "--device", "cuda:99")
    assert code == 2
    assert "--device cuda:99: " in said

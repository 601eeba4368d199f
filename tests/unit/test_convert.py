"""Models and adapters in other formats: stock transformers and PEFT compute the same from them, and the way back."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from softlaunch.models import load_model, load_tokenizer
from softlaunch.models.chatglm import glm_config
from softlaunch.models.encoder import load_encoder
from softlaunch.models.layouts import ROTARY_TABLE
from softlaunch.tuning import add_lora, add_prefix, load_adapter
from tests.bases import RELEASED_GLM4, Golden, batch, random_base, released_weights, write_released
from tests.encoders import write_encoder
from tests.tokenizer_files import write_released_chatglm

DEMO_BASE = Path(__file__).parents[2] / "recipes" / "demo" / "base"
ROWS = batch([[5, 17, 33, 8, 60, 41, 9], [70, 3, 25, 90]], "right")


def all_tensors(directory: Path) -> dict[str, torch.Tensor]:
    return {k: v for file in directory.glob("*.safetensors") for k, v in load_file(file).items()}


def assert_equal_tensors(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[k], other[k]) and one[k].dtype == other[k].dtype for k in one)


# -- models


@pytest.mark.parametrize("name", ["chatglm2", "chatglm3_rope_ratio", "glm4"])
def test_stock_transformers_computes_the_same_and_back_come_the_same_tensors(name, tmp_path, softlaunch):
    released = tmp_path / "released"
    if name == "glm4":
        config = RELEASED_GLM4
        write_released(released, config, num_shards=3, dtype=torch.bfloat16)
        expected = load_model(str(released), dtype=torch.float32)(**ROWS).logits
        ids = ROWS["input_ids"]
    else:
        golden = Golden.read(name)
        config = golden.meta["config"]
        golden.write_sharded_bin(released)
        expected, ids = golden.tensors["logits"], golden.tensors["input_ids"]
    assert softlaunch("convert", released, tmp_path / "glm", "--to", "glm")[0] == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "glm", dtype=torch.float32)
    written = json.loads((tmp_path / "glm" / "config.json").read_text())
    assert written["architectures"] == ["GlmForCausalLM"]
    for key, default in (("rope_ratio", 1), ("seq_length", None), ("layernorm_epsilon", None)):  # for llama.cpp
        assert written[key] == config.get(key, default)
    mask = ROWS["attention_mask"] if name == "glm4" else torch.ones_like(ids)
    torch.testing.assert_close(model(input_ids=ids, attention_mask=mask).logits, expected, atol=1e-5, rtol=0)

    assert softlaunch("convert", tmp_path / "glm", tmp_path / "back", "--to", "chatglm")[0] == 0
    back = all_tensors(tmp_path / "back")
    assert len(back.pop(ROTARY_TABLE)) == config["kv_channels"] // 4
    assert_equal_tensors(back, released_weights(config, torch.bfloat16) if name == "glm4" else golden.weights)
    again = json.loads((tmp_path / "back" / "config.json").read_text())
    assert glm_config(again, "").to_dict() == glm_config(config, "").to_dict()
    assert torch.equal(
        load_model(str(tmp_path / "back"), dtype=torch.float32)(input_ids=ids).logits, model(input_ids=ids).logits
    )


@pytest.mark.parametrize("style", ["chatglm2", "chatglm3"])
def test_tokenizer_goes_along_and_comes_back(style, tmp_path, softlaunch):
    released = write_released(tmp_path / f"{style}-6b", {**RELEASED_GLM4, "padded_vocab_size": 640})
    config = (released / "config.json").read_text()
    write_released_chatglm(released, style)
    (released / "config.json").write_text(config)
    assert softlaunch("convert", released, tmp_path / "glm", "--to", "glm")[0] == 0
    code, said = softlaunch("convert", tmp_path / "glm", tmp_path / "back", "--to", "chatglm")
    assert code == 0
    assert "programs that run it need configuration_chatglm.py" in said
    assert (tmp_path / "back" / "tokenizer.model").read_bytes() == (released / "tokenizer.model").read_bytes()
    text, messages = "今天天气怎么样 the quick fox", [{"role": "user", "content": "你好"}]
    first = load_tokenizer(released)
    for tokenizer in (
        AutoTokenizer.from_pretrained(tmp_path / "glm"),
        load_tokenizer(tmp_path / "glm"),
        load_tokenizer(tmp_path / "back"),
    ):
        assert tokenizer(text)["input_ids"] == first(text)["input_ids"]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        assert ids == first.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]


def test_q_k_and_v_may_lie_in_different_files(tmp_path, softlaunch):
    released = write_released(tmp_path / "released", RELEASED_GLM4)
    load_model(str(released)).save_pretrained(tmp_path / "glm", max_shard_size="30KB")
    where = json.loads((tmp_path / "glm" / "model.safetensors.index.json").read_text())["weight_map"]
    assert any(where[k] != where[k.replace("q_proj", "v_proj")] for k in where if "q_proj.weight" in k)
    code, said = softlaunch("convert", tmp_path / "glm", tmp_path / "back", "--to", "chatglm")
    assert code == 0
    assert "The tokenizer stays" in said
    back = all_tensors(tmp_path / "back")
    del back[ROTARY_TABLE]
    assert_equal_tensors(back, released_weights(RELEASED_GLM4))


_PEAK = """
import resource, sys
from pathlib import Path
import torch
from softlaunch.models.convert import plan_conversion
from softlaunch.models import layouts

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024

directory = Path(sys.argv[1])
for source, target, to in (("released", "glm", "glm"), ("glm", "back", "chatglm")):
    (directory / target).mkdir()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew: what was before had one of its own
    before = peak()
    plan_conversion(directory / source, to).write(directory / target)
    print(peak() - before)
"""


def test_peak_memory_is_about_one_file(tmp_path):
    """Both ways, mapped pages included: a model of 8 files takes less than a third of its size."""
    config = {**RELEASED_GLM4, "padded_vocab_size": 2048, "hidden_size": 512, "ffn_hidden_size": 2048, "num_layers": 8}
    write_released(tmp_path / "released", config, num_shards=8)
    files = [file.stat().st_size for file in (tmp_path / "released").glob("*.safetensors")]
    done = subprocess.run([sys.executable, "-c", _PEAK, tmp_path], capture_output=True, text=True, check=True)
    for line in done.stdout.splitlines():
        assert 0 < int(line) < 1.5 * max(files) + 10e6 < 0.5 * sum(files), (line, files)


@pytest.mark.parametrize(
    ("change", "words", "message"),
    [
        ({"transformer.prefix_encoder.embedding.weight": (5, 192)}, (), "--to softlaunch, then .* with --drop_prefix"),
        ({"transformer.encoder.layers.0.mlp.dense_h_to_4h.weight_scale": (9,)}, (), "quantized by the original code"),
        ({"score.weight": (2, 64)}, ("--drop_prefix",), "1 tensors have no place in the target .* lost: score.weight"),
        ({"transformer.output_layer.weight": None}, (), "1 of 24 tensors are missing: transformer.output_layer"),
        ({"transformer.output_layer.weight": (9, 9)}, (), r"has the shape \(9, 9\), by config.json .* \(96, 64\)"),
    ],
)
def test_what_would_be_lost_or_is_missing_is_refused(change, words, message, tmp_path, softlaunch):
    released = write_released(tmp_path / "released", RELEASED_GLM4)
    (file,) = released.glob("*.safetensors")
    tensors = load_file(file)
    for name, shape in change.items():
        tensors.pop(name, None)
        if shape is not None:
            tensors[name] = torch.ones(shape)
    save_file(tensors, file)
    code, said = softlaunch("convert", released, tmp_path / "glm", "--to", "glm", *words)
    assert code == 2
    assert re.search(message, said), said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["released"]
    if "prefix" in message:
        assert softlaunch("convert", released, tmp_path / "glm", "--to", "glm", "--drop_prefix")[0] == 0


def test_a_whole_file_goes_before_an_index_as_when_it_is_loaded(tmp_path, softlaunch):
    (file,) = write_released(tmp_path / "released", RELEASED_GLM4).glob("*.safetensors")
    file.rename(file.with_name("model.safetensors"))  # which the index beside it does not name
    assert softlaunch("convert", tmp_path / "released", tmp_path / "glm", "--to", "glm")[0] == 0
    models = (load_model(str(tmp_path / name)) for name in ("released", "glm"))
    first, second = (model(**ROWS).logits for model in models)
    assert torch.equal(first, second)


def test_other_bad_input(tmp_path, softlaunch):
    random_base("llama").save_pretrained(tmp_path / "llama")
    scaled = random_base("glm")
    scaled.config.rope_parameters = {**scaled.config.rope_parameters, "partial_rotary_factor": 1.0}
    scaled.save_pretrained(tmp_path / "scaled")
    write_released(tmp_path / "cut", RELEASED_GLM4)
    (file,) = (tmp_path / "cut").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    for source, to, message in (
        ("nothing", "glm", "no such directory"),
        ("llama", "glm", "model_type is 'llama'"),
        ("scaled", "chatglm", "partial_rotary_factor is 1.0"),
        ("scaled", "glm", "in the layout glm already"),
        ("cut", "glm", "weight files cannot be used"),
        ("cut", "peft", "no adapter here"),
    ):
        code, said = softlaunch("convert", tmp_path / source, tmp_path / "out", "--to", to)
        assert code == 2
        assert message in said
        assert not (tmp_path / "out").exists()
    assert "exists already" in softlaunch("convert", tmp_path / "cut", tmp_path / "llama", "--to", "glm")[1]


@pytest.mark.parametrize("is_known_before", [True, False])
def test_full_disk_leaves_nothing(is_known_before, tmp_path, small_disk, softlaunch, monkeypatch):
    write_released(tmp_path / "released", RELEASED_GLM4)
    if not is_known_before:  # somebody else fills it meanwhile
        monkeypatch.setattr("softlaunch.models.convert.Conversion.num_bytes", 0)
    code, said = softlaunch("convert", tmp_path / "released", small_disk / "glm", "--to", "glm")
    assert code == 2
    assert ("GiB are needed" if is_known_before else "No space left on device. Nothing of it was left") in said
    assert not list(small_disk.iterdir())


# -- adapters


@pytest.mark.parametrize("projection", [False, True])
def test_prefix_into_every_format_and_back(projection, tmp_path, softlaunch):
    base = random_base("glm")
    base.save_pretrained(tmp_path / "base")
    torch.manual_seed(0)
    model = add_prefix(base, num_virtual_tokens=5, projection=projection).eval()
    model.save_pretrained(tmp_path / "run" / "adapter")
    expected, real = model(**ROWS).logits, ROWS["attention_mask"].bool()
    as_base = ("--base", tmp_path / "base")
    for source, to in (
        ("run", "peft"),
        ("run", "thudm-prefix"),
        ("peft", "softlaunch"),
        ("thudm-prefix", "softlaunch"),
        ("peft", "thudm-prefix"),
        ("thudm-prefix", "peft"),
    ):
        target = tmp_path / (to if source == "run" else f"{source}-{to}")
        code, said = softlaunch("convert", tmp_path / source, target, "--to", to, *as_base)
        assert code == 0, said
        if to == "peft":
            tuned = PeftModel.from_pretrained(random_base("glm"), target).eval()
            assert ("The projection was computed" in said) == (projection and source != "peft")
        else:
            tuned = load_adapter(random_base("glm"), target)
        torch.testing.assert_close(tuned(**ROWS).logits[real], expected[real], atol=1e-4, rtol=0)
    ours, back = (
        load_file(tmp_path / d / "adapter_model.safetensors") for d in ("run/adapter", "thudm-prefix-softlaunch")
    )
    assert_equal_tensors(ours, back)
    original = torch.load(tmp_path / "thudm-prefix" / "pytorch_model.bin", weights_only=True)
    assert {f"transformer.{name}" for name in ours} == set(original)


def test_adapters_that_cannot_be_converted(tmp_path, softlaunch):
    for family in ("llama", "qwen3"):
        random_base(family).save_pretrained(tmp_path / family)
    add_prefix(random_base("llama"), num_virtual_tokens=5).save_pretrained(tmp_path / "prefix")
    get_peft_model(random_base("llama"), LoraConfig(r=2)).save_pretrained(tmp_path / "lora")
    add_prefix(add_lora(random_base("llama")), num_virtual_tokens=5).save_pretrained(tmp_path / "both" / "adapter")
    encoder = load_encoder(str(write_encoder(tmp_path / "bert")), ("a", "b"))
    add_prefix(encoder.model, num_virtual_tokens=5, head=encoder.head).save_pretrained(tmp_path / "classifier")
    small = random_base("llama").config
    small.num_hidden_layers = 2
    small.save_pretrained(tmp_path / "small")
    for source, to, base, message in (
        ("prefix", "softlaunch", "llama", "has the format softlaunch already"),
        ("prefix", "thudm-prefix", "llama", "this prefix is for llama, which they cannot load"),
        ("prefix", "peft", "small", "for another model: expected 2 layers"),
        ("prefix", "glm", "llama", "is an adapter without layers; glm is a layout of models"),
        ("both", "peft", "llama", "with this prefix a LoRA was trained"),
        ("both", "thudm-prefix", "llama", "would be lost"),
        ("classifier", "peft", "bert", "with this prefix the head of a classifier was trained"),
        ("lora", "thudm-prefix", "llama", "is a LORA adapter"),
        ("lora", "softlaunch", "llama", "in PEFT's own format already"),
        ("prefix", "peft", None, "does not say what its base is"),
    ):
        words = ("--base", tmp_path / base) if base else ()
        code, said = softlaunch("convert", tmp_path / source, tmp_path / "out", "--to", to, *words)
        assert code == 2, said
        assert message in said
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("to", ["peft", "thudm-prefix", "chatglm"])
def test_full_disk_leaves_nothing_of_an_adapter(to, tmp_path, small_disk, softlaunch):
    base = random_base("glm")
    base.save_pretrained(tmp_path / "base")
    model = add_lora(base, r=64) if to == "chatglm" else add_prefix(base, num_virtual_tokens=500)
    model.save_pretrained(tmp_path / "run" / "adapter")
    words = ("--to", to, "--base", tmp_path / "base")
    code, said = softlaunch("convert", tmp_path / "run", small_disk / "out", *words)
    assert code == 2
    assert "No space left on device. Nothing of it was left" in said
    assert not list(small_disk.iterdir())
    assert softlaunch("convert", tmp_path / "run", tmp_path / "out", *words)[0] == 0

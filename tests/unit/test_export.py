"""Whole models on disk, in transformers' layout and in the released one; and what cannot be trained or written."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GlmForCausalLM

from softlaunch.errors import ArgumentError
from softlaunch.models import load_model, load_tokenizer
from softlaunch.models.layouts import ROTARY_TABLE
from softlaunch.models.save import check_layout, save_model_directory
from softlaunch.tuning import digest, train_all, train_last_layers
from tests.bases import RELEASED_GLM4, Golden, random_base, write_released

DEMO = "recipes/demo/base"
IDS = torch.tensor([[5, 17, 33, 8, 60, 41, 9]])


class NoTokenizer:
    def save_pretrained(self, directory):
        (directory / "tokenizer.json").write_text("{}")


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=IDS, use_cache=False).logits


def changed(model):
    """As after training."""
    with torch.no_grad():
        for parameter in train_all(model).parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model


def test_transformers_layout_is_read_by_stock_from_pretrained(tmp_path):
    model, tokenizer = changed(load_model(DEMO)), load_tokenizer(DEMO)
    save_model_directory(model, tokenizer, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["rope_ratio"] == 1  # as llama.cpp reads it
    stock = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(stock) is GlmForCausalLM
    assert torch.equal(logits(stock), logits(model))
    assert digest(load_model(str(tmp_path))) != digest(load_model(DEMO))
    assert (
        load_tokenizer(str(tmp_path))("类型#上衣*颜色#黑色")["input_ids"]
        == tokenizer("类型#上衣*颜色#黑色")["input_ids"]
    )


def test_released_layout_has_the_names_and_files_of_the_base(tmp_path):
    model = changed(load_model(DEMO))
    save_model_directory(model, load_tokenizer(DEMO), tmp_path, layout="chatglm")
    again = load_model(str(tmp_path))
    assert torch.equal(logits(again), logits(model))
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "chatglm"
    assert (tmp_path / "tokenizer.model").is_file()
    assert load_tokenizer(str(tmp_path)).chat_template == load_tokenizer(DEMO).chat_template


@pytest.mark.parametrize("shards", [1, 2])
def test_released_layout_round_trip_is_exact(shards, tmp_path):
    source = write_released(tmp_path / "in", RELEASED_GLM4, num_shards=shards)
    save_model_directory(load_model(str(source)), NoTokenizer(), tmp_path / "out", layout="chatglm")
    before = {k: v for file in source.glob("*.safetensors") for k, v in load_file(file).items()}
    after = {k: v for file in (tmp_path / "out").glob("*.safetensors") for k, v in load_file(file).items()}
    del after[ROTARY_TABLE]
    assert set(after) == set(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_half_precision_on_request(tmp_path):
    model = changed(load_model(str(Golden.read("chatglm2").write(tmp_path / "base"))))
    save_model_directory(model, NoTokenizer(), tmp_path / "out", dtype=torch.bfloat16)
    assert {t.dtype for t in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    assert model.dtype == torch.float32 == load_model(str(tmp_path / "out")).dtype


def test_released_layout_needs_a_released_base(tmp_path):
    random_base("llama").save_pretrained(tmp_path)
    with pytest.raises(ArgumentError, match="no local directory in that layout"):
        check_layout(load_model(str(tmp_path)), "chatglm")


def test_last_layers_train_in_float32_and_the_rest_stays(tmp_path):
    model = train_last_layers(random_base("glm").bfloat16(), 1)
    dtypes = {name: (p.dtype, p.requires_grad) for name, p in model.named_parameters()}
    for name, found in dtypes.items():
        trained = name.startswith("model.layers.2.")
        assert found == (torch.float32 if trained else torch.bfloat16, trained), name
    with pytest.raises(ArgumentError, match="has 3 layers"):
        train_last_layers(random_base("glm"), 4)
    path = str(write_released(tmp_path, RELEASED_GLM4))
    for train in (train_all, lambda model: train_last_layers(model, 1)):
        with pytest.raises(ArgumentError, match="quantized weights cannot be trained"):
            train(load_model(path, quantization_bit=4))

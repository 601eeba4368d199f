"""LoRA and IA3 trained on the released ChatGLM code, by stock PEFT: loaded, merged, converted there and back.

The released code no longer runs; its layers are built here under its names, and merged by PEFT, which tells what such
an adapter computes: the released checkpoint with the merged weights is loaded beside base + adapter.
"""

import json

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from softlaunch.errors import CheckpointError
from softlaunch.models import load_model
from softlaunch.tuning import add_ia3, add_lora, load_adapter
from softlaunch.tuning.released import convert_layers
from tests.bases import RELEASED_GLM4, batch, random_base, released_weights, write_released

ROWS = batch([[5, 17, 33, 8, 60, 41, 9], [70, 3, 25, 90]], "left")
ALL = ["query_key_value", "self_attention.dense", "dense_h_to_4h", "dense_4h_to_h"]
ONE_LAYER = r".*layers\.1\.self_attention\.query_key_value"

RELEASED = {
    "lora": lambda: LoraConfig(r=4, target_modules=["query_key_value"]),
    "rslora everywhere": lambda: LoraConfig(r=4, lora_alpha=8, use_rslora=True, target_modules=ALL),
    "dora": lambda: LoraConfig(r=4, use_dora=True, target_modules=["query_key_value", "dense"]),
    "a pattern": lambda: LoraConfig(r=4, target_modules=ONE_LAYER),
    "two ranks": lambda: LoraConfig(r=4, rank_pattern={"query_key_value": 6}, target_modules=ALL),
    "output layer": lambda: LoraConfig(r=4, target_modules=["query_key_value"], modules_to_save=["output_layer"]),
    "ia3": lambda: IA3Config(
        target_modules=["query_key_value", "dense_4h_to_h"], feedforward_modules=["dense_4h_to_h"]
    ),
}
OURS = {
    "lora": lambda base: add_lora(base, r=4),
    "q and v": lambda base: add_lora(base, r=4, target_modules=["q_proj", "v_proj"]),
    "q alone": lambda base: add_lora(base, r=4, rslora=True, target_modules=["q_proj"]),
    "rslora everywhere": lambda base: add_lora(base, r=4, rslora=True, target_modules="all-linear"),
    "dora": lambda base: add_lora(base, r=4, dora=True),
    "lm_head": lambda base: add_lora(base, r=4, modules_to_save=["lm_head"]),
    "ia3": add_ia3,
}


class Released(nn.Module):
    """The layers of the released network under their names: enough to put an adapter in and to merge it."""

    def __init__(self):
        super().__init__()
        self.config = {"model_type": "chatglm", "tie_word_embeddings": False}
        for name, tensor in released_weights(RELEASED_GLM4).items():
            path, _, kind = name.rpartition(".")
            module = self
            for part in path.split(".")[:-1]:
                if not hasattr(module, part):
                    module.add_module(part, nn.Module())
                module = getattr(module, part)
            leaf = path.rpartition(".")[2]
            if not hasattr(module, leaf):
                bias = leaf == "query_key_value"
                module.add_module(leaf, nn.Linear(*tensor.shape[::-1], bias=bias) if tensor.dim() == 2 else nn.Module())
            getattr(module, leaf).register_parameter(kind, nn.Parameter(tensor))

    def prepare_inputs_for_generation(self):
        """PEFT looks for it."""


def shaken(model):
    """With numbers that show: fresh LoRA does nothing, and IA3 multiplies by one."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


def logits(model):
    with torch.no_grad():
        return model(**ROWS, use_cache=False).logits[ROWS["attention_mask"].bool()]


def merged_logits(tuned, directory):
    """Of the released checkpoint with the weights that stock PEFT merges."""
    write_released(directory, RELEASED_GLM4)
    save_file(
        {k: v.clone() for k, v in tuned.merge_and_unload().state_dict().items()},
        directory / "model-00001-of-00001.safetensors",
        metadata={"format": "pt"},
    )
    return logits(load_model(str(directory)))


def base(tmp_path):
    return load_model(str(write_released(tmp_path / "base", RELEASED_GLM4)))


@pytest.mark.parametrize("method", RELEASED)
def test_what_stock_peft_trained_on_the_released_layers(method, tmp_path):
    tuned = shaken(get_peft_model(Released(), RELEASED[method]()))
    tuned.save_pretrained(tmp_path / "released")
    loaded = load_adapter(base(tmp_path), tmp_path / "released", trainable=True)
    assert any(p.requires_grad for p in loaded.parameters())
    computed, expected = logits(loaded.eval()), merged_logits(tuned, tmp_path / "merged")
    torch.testing.assert_close(computed, expected, atol=1e-4, rtol=0)
    assert (expected - logits(base(tmp_path))).abs().max() > 0.1

    config = base(tmp_path).config
    for folder, to in (("glm", "glm"), ("back", "chatglm")):
        (tmp_path / folder).mkdir()
        source = tmp_path / ("released" if to == "glm" else "glm")
        assert convert_layers(config, source, tmp_path / folder, to) == []
    stock = PeftModel.from_pretrained(base(tmp_path), tmp_path / "glm").eval()
    torch.testing.assert_close(logits(stock), computed, atol=1e-6, rtol=0)
    before, after = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("released", "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    PeftModel.from_pretrained(Released(), tmp_path / "back")


@pytest.mark.parametrize("method", OURS)
def test_what_was_trained_here_on_the_released_layers(method, tmp_path):
    tuned = shaken(OURS[method](base(tmp_path)))
    expected = logits(tuned)
    tuned.save_pretrained(tmp_path / "ours")
    for folder in ("released", "back"):
        (tmp_path / folder).mkdir()
    notes = convert_layers(tuned.config, tmp_path / "ours", tmp_path / "released", "chatglm")
    assert bool(notes) == (method in ("lora", "q and v", "rslora everywhere", "dora", "lm_head"))
    stock = PeftModel.from_pretrained(Released(), tmp_path / "released")
    torch.testing.assert_close(merged_logits(stock, tmp_path / "merged"), expected, atol=1e-4, rtol=0)
    again = load_adapter(base(tmp_path), tmp_path / "released")
    torch.testing.assert_close(logits(again), expected, atol=1e-5, rtol=0)
    with pytest.raises(CheckpointError, match="another base: expected"):
        load_adapter(random_base("glm"), tmp_path / "released")
    convert_layers(tuned.config, tmp_path / "released", tmp_path / "back", "glm")
    torch.testing.assert_close(logits(load_adapter(base(tmp_path), tmp_path / "back")), expected, atol=1e-5, rtol=0)


def test_another_base(tmp_path):
    """Its layers bear the same names, its projections have other sizes."""
    other = {**RELEASED_GLM4, "multi_query_group_num": 4}
    tuned = add_lora(load_model(str(write_released(tmp_path / "other", other))), r=4)
    tuned.save_pretrained(tmp_path / "ours")
    (tmp_path / "released").mkdir()
    (tmp_path / "ours" / "softlaunch.json").unlink()
    convert_layers(tuned.config, tmp_path / "ours", tmp_path / "released", "chatglm")
    (tmp_path / "out").mkdir()
    for source, to in (("ours", "chatglm"), ("released", "glm")):
        with pytest.raises(CheckpointError, match="does not fit this base"):
            convert_layers(base(tmp_path).config, tmp_path / source, tmp_path / "out", to)
    with pytest.raises(CheckpointError, match="does not fit this base"):
        load_adapter(base(tmp_path), tmp_path / "released")


def test_command(tmp_path, softlaunch):
    path = write_released(tmp_path / "base", RELEASED_GLM4)
    run = tmp_path / "run"
    add_lora(base(tmp_path), r=4).save_pretrained(run / "adapter")
    code, said = softlaunch("convert", run, tmp_path / "out", "--to", "chatglm")
    assert code == 0, said
    assert "one update of three times the rank" in said
    written = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert written["target_modules"] == ["query_key_value"]
    assert written["rank_pattern"] == {"query_key_value": 12}
    random_base("llama").save_pretrained(tmp_path / "llama")
    add_lora(random_base("llama")).save_pretrained(tmp_path / "other")
    add_lora(base(tmp_path), target_modules=["q_proj"], dora=True).save_pretrained(tmp_path / "dora")
    stock = LoraConfig(r=2, target_modules=["q_proj"], bias="lora_only", init_lora_weights=False)
    get_peft_model(base(tmp_path), stock).save_pretrained(tmp_path / "bias")
    for source, to, model, message in (
        (run, "glm", path, "in the layout glm already"),
        (tmp_path / "other", "chatglm", tmp_path / "llama", "model_type is 'llama'"),
        (tmp_path / "dora", "chatglm", path, "lora_magnitude_vector that has no counterpart"),
        (tmp_path / "bias", "chatglm", path, "without trained biases"),
    ):
        code, said = softlaunch("convert", source, tmp_path / "refused", "--to", to, "--base", model)
        assert code == 2, said
        assert message in said
        assert not (tmp_path / "refused").exists()

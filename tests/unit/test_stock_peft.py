"""Adapters to and from stock PEFT, which runs in a process that cannot import this package."""

import subprocess
import sys

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from softlaunch.errors import ArgumentError
from softlaunch.models import load_model
from softlaunch.tuning import add_lora, add_prefix, export_adapter, load_adapter
from tests.bases import CONFIGS, Golden, batch, random_base

BASES = ["chatglm2", *CONFIGS]
TRAINED = ["trained", "trained_projection"]
# Shorter than the sliding window of 24 together with either prefix: PEFT's prefix leaves the window like any token
ROWS = [[5, 17, 33, 8, 60, 41, 9], [70, 3, 25, 90], [11, 12, 80, 44, 23, 6, 77, 31, 50]]
TOLERANCE = 1e-4

_STOCK = """
import sys
from pathlib import Path

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "softlaunch":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
try:
    import softlaunch
    sys.exit("softlaunch can be imported")
except ModuleNotFoundError:
    pass

import torch
from peft import PeftModel, PrefixTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

inputs = load_file("inputs.safetensors")
right, left = ({k: inputs[f"{side}_{k}"] for k in ("input_ids", "attention_mask")} for side in ("right", "left"))

def results(model):
    with torch.no_grad():
        answers = model.eval().generate(**left, max_new_tokens=8, do_sample=False)
        return {"logits": model(**right).logits, "answers": answers}

for folder in sorted(Path("bases").iterdir()):
    base = lambda: AutoModelForCausalLM.from_pretrained(folder)
    found = results(PeftModel.from_pretrained(base(), f"exported/{folder.name}"))
    save_file(found, f"exported/{folder.name}/results.safetensors")
    for name, projection in (("trained", False), ("trained_projection", True)):
        torch.manual_seed(0)
        config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=7, prefix_projection=projection)
        if projection:
            config.encoder_hidden_size = 32
        model = get_peft_model(base(), config).train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-2)
        for _ in range(3):
            model(**right, labels=right["input_ids"]).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        model.save_pretrained(f"{name}/{folder.name}")
        save_file(results(model), f"{name}/{folder.name}/results.safetensors")
"""


@pytest.fixture(scope="module")
def exchange(tmp_path_factory):
    """A directory with every base, our exported prefix for it, and what stock PEFT made of both."""
    directory = tmp_path_factory.mktemp("exchange")
    inputs = {f"{side}_{k}": v for side in ("right", "left") for k, v in batch(ROWS, side).items()}
    save_file(inputs, directory / "inputs.safetensors")
    for index, family in enumerate(BASES):
        if family == "chatglm2":
            base = load_model(str(Golden.read("chatglm2").write(directory / "released")))
        else:
            base = random_base(family)
        base.save_pretrained(directory / "bases" / family)
        torch.manual_seed(0)
        model = add_prefix(base, num_virtual_tokens=5, projection=index % 2 == 1).eval()
        model.save_pretrained(directory / "ours" / family)
        export_adapter(model, directory / "exported" / family, format="peft")
    subprocess.run([sys.executable, "-c", _STOCK], cwd=directory, check=True, capture_output=True)
    return directory


def assert_same_results(model, expected):
    right, left = batch(ROWS, "right"), batch(ROWS, "left")
    real = right["attention_mask"].bool()
    with torch.no_grad():
        torch.testing.assert_close(model(**right).logits[real], expected["logits"][real], atol=TOLERANCE, rtol=0)
    assert torch.equal(model.generate(**left, max_new_tokens=8, do_sample=False), expected["answers"])


def test_export_in_one_process(tmp_path):
    """The one case of the fast tier."""
    model = add_prefix(random_base("glm"), num_virtual_tokens=5, projection=True).eval()
    export_adapter(model, tmp_path, format="peft")
    stock = PeftModel.from_pretrained(random_base("glm"), tmp_path).eval()
    expected = {"logits": stock(**batch(ROWS, "right")).logits}
    expected["answers"] = stock.generate(**batch(ROWS, "left"), max_new_tokens=8, do_sample=False)
    assert_same_results(model, expected)
    assert_same_results(load_adapter(random_base("glm"), tmp_path), expected)


@pytest.mark.recipe
@pytest.mark.parametrize("family", BASES)
def test_stock_peft_answers_as_we_do_with_an_exported_prefix(exchange, family):
    base = load_model(str(exchange / "bases" / family))
    expected = load_file(exchange / "exported" / family / "results.safetensors")
    model = load_adapter(base, exchange / "ours" / family)
    assert_same_results(model, expected)
    assert_same_results(load_adapter(model.unload(), exchange / "exported" / family), expected)


@pytest.mark.recipe
@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("family", BASES)
def test_prefix_trained_by_stock_peft_answers_the_same_here(exchange, family, name):
    base = load_model(str(exchange / "bases" / family))
    bare = base(**batch(ROWS, "right")).logits
    model = load_adapter(base, exchange / name / family)
    assert model.encoder().config.num_virtual_tokens == 7
    expected = load_file(exchange / name / family / "results.safetensors")
    assert_same_results(model, expected)
    assert (expected["logits"] - bare).abs().max() > 100 * TOLERANCE


def test_export_of_one_of_several_and_of_unknown_format(tmp_path):
    torch.manual_seed(0)
    model = add_prefix(random_base("glm"), num_virtual_tokens=5)
    model.save_pretrained(tmp_path / "first")
    model.load_adapter(tmp_path / "first", "second")
    with torch.no_grad():
        model.encoder("second").embedding.weight.add_(1)
    export_adapter(model, tmp_path / "second", format="original", adapter_name="second")
    again = load_adapter(model.unload(), tmp_path / "second")
    assert torch.equal(again.encoder().embedding.weight, model.encoder("second").embedding.weight)
    with pytest.raises(ArgumentError, match="allowed are 'peft' and 'original'"):
        export_adapter(model, tmp_path, format="lora")


def test_what_is_more_than_a_prefix_is_not_exported(tmp_path):
    model = add_prefix(add_lora(random_base("glm")), num_virtual_tokens=5)
    with pytest.raises(ArgumentError, match="more than a prefix"):
        export_adapter(model, tmp_path / "out", format="peft")
    assert not (tmp_path / "out").exists()

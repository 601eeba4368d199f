"""Released ChatGLM2/3 checkpoints in transformers' classes: the numbers are the original's."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, GlmForCausalLM

from softlaunch.errors import CheckpointError
from softlaunch.models import load as load_module
from softlaunch.models import load_model
from tests.bases import Golden

NAMES = ["chatglm2", "chatglm3_rope_ratio"]
TOLERANCE = 1e-5


@pytest.mark.parametrize("layout", ["write", "write_sharded_bin"])
@pytest.mark.parametrize("name", NAMES)
def test_loss_logits_and_greedy_equal_the_original(name, layout, tmp_path):
    golden = Golden.read(name)
    model = load_model(str(getattr(golden, layout)(tmp_path)))
    assert type(model) is GlmForCausalLM
    out = model(input_ids=golden.tensors["input_ids"], labels=golden.tensors["labels"])
    assert out.loss.item() == pytest.approx(golden.meta["loss"], abs=TOLERANCE)
    torch.testing.assert_close(out.logits, golden.tensors["logits"], atol=TOLERANCE, rtol=0)
    for prompt, expected in zip(golden.meta["prompts"], golden.meta["greedy_12_new_tokens"], strict=True):
        ids = torch.tensor([prompt])
        answer = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
        assert answer[0].tolist() == expected


@pytest.mark.parametrize("name", NAMES)
def test_left_padded_batch_equals_the_original(name, tmp_path):
    golden = Golden.read(name)
    model = load_model(str(golden.write(tmp_path)))
    mask = golden.tensors["leftpad_attention_mask"]
    logits = model(
        input_ids=golden.tensors["leftpad_input_ids"],
        attention_mask=mask,
        position_ids=golden.tensors["leftpad_position_ids"],
    ).logits
    real = mask.bool()
    torch.testing.assert_close(logits[real], golden.tensors["leftpad_logits"][real], atol=TOLERANCE, rtol=0)


def test_all_gradients_equal_the_original(tmp_path):
    golden = Golden.read("chatglm2")
    model = load_model(str(golden.write(tmp_path)))
    model(input_ids=golden.tensors["input_ids"], labels=golden.tensors["labels"]).loss.backward()
    recorded = {k.removeprefix("grad."): v for k, v in golden.tensors.items() if k.startswith("grad.")}
    assert len(recorded) == 9
    for name, want in recorded.items():
        _, layer, part, kind = name.removeprefix("transformer.encoder.").split(".", 3)
        layer = model.model.layers[int(layer)]
        if kind.startswith("query_key_value"):
            projections = (getattr(layer.self_attn, f"{x}_proj") for x in "qkv")
            got = torch.cat([getattr(p, kind.split(".")[1]).grad for p in projections])
        else:
            ours = {"self_attention.dense": "self_attn.o_proj", "mlp.dense_h_to_4h": "mlp.gate_up_proj"}
            ours |= {"mlp.dense_4h_to_h": "mlp.down_proj"}
            module = f"{part}.{kind}".removesuffix(".weight")
            got = layer.get_submodule(ours.get(module, module)).weight.grad
        torch.testing.assert_close(got, want, atol=TOLERANCE, rtol=0)


def test_saved_model_is_in_transformers_layout_and_equal(tmp_path):
    golden = Golden.read("chatglm3_rope_ratio")
    model = load_model(str(golden.write(tmp_path / "released")))
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    ids = golden.tensors["input_ids"]
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["model_type"] == "glm"
    assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)


@pytest.mark.parametrize(
    ("num_gpus", "num_processes", "device_map", "reason"),
    [(0, 1, None, "no GPUs"), (1, 1, None, "no GPUs"), (4, 4, None, "several processes"), (4, 1, "auto", None)],
)
def test_model_parallel_mode(num_gpus, num_processes, device_map, reason, tmp_path, monkeypatch, caplog):
    """Layers over the GPUs of one process; elsewhere nothing, and it says so."""
    asked, load = [], load_module.load_released_chatglm
    monkeypatch.setenv("WORLD_SIZE", str(num_processes))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)

    def on_the_cpu(*args, device_map=None, **kwargs):
        asked.append(device_map)
        return load(*args, **kwargs)

    monkeypatch.setattr(load_module, "load_released_chatglm", on_the_cpu)
    load_model(str(Golden.read("chatglm2").write(tmp_path)), model_parallel=True, dtype=torch.float32)
    assert asked == [device_map]
    assert ("model_parallel_mode has no effect" in caplog.text) == (reason is not None)
    assert (reason or "") in caplog.text


def test_missing_shard_is_refused(tmp_path):
    directory = Golden.read("chatglm2").write_sharded_bin(tmp_path)
    (directory / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(CheckpointError, match="pytorch_model-00002-of-00002"):
        load_model(str(directory))


def test_missing_tensor_is_refused(tmp_path):
    golden = Golden.read("chatglm2")
    del golden.tensors["model.transformer.encoder.layers.1.mlp.dense_4h_to_h.weight"]
    with pytest.raises(CheckpointError, match=r"1 missing .*layers\.1\.mlp\.down_proj"):
        load_model(str(golden.write(tmp_path)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"position_encoding_2d": True}, r"ChatGLM-6B \(v1\)"),
        ({"rmsnorm": False}, "rmsnorm is False"),
        ({"ffn_hidden_size": 200}, "of another shape"),
    ],
)
def test_other_networks_are_refused(change, message, tmp_path):
    golden = Golden.read("chatglm2")
    golden.meta["config"] |= change
    with pytest.raises(CheckpointError, match=message):
        load_model(str(golden.write(tmp_path)))


def test_weights_quantized_by_the_original_code_are_refused(tmp_path):
    golden = Golden.read("chatglm2")
    golden.tensors["model.transformer.encoder.layers.0.mlp.dense_h_to_4h.weight_scale"] = torch.ones(320)
    with pytest.raises(CheckpointError, match="quantized by the original code"):
        load_model(str(golden.write(tmp_path)))


@pytest.mark.parametrize(("make", "message"), [("missing", "no such directory"), ("empty", "no config.json")])
def test_directory_without_a_model_is_refused(make, message, tmp_path):
    if make == "empty":
        (tmp_path / "model").mkdir()
    with pytest.raises(CheckpointError, match=message):
        load_model(str(tmp_path / "model"))

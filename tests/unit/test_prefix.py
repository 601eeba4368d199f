"""P-Tuning v2: equal to the original, and equal to itself under everything it is combined with."""

import copy
import json

import pytest
import torch

from softlaunch.errors import CheckpointError
from softlaunch.models import load_model
from softlaunch.tuning import add_prefix, export_adapter, load_adapter
from softlaunch.tuning.attention import IMPLEMENTATIONS
from softlaunch.tuning.formats import ORIGINAL_FILE, WEIGHTS_FILE
from tests.bases import CONFIGS, PREFIX_KEYS, Golden, batch, random_base

PREFIX_GOLDENS = ["chatglm2_prefix", "chatglm2_prefix_projection"]
TOLERANCE = 1e-5
ROWS = [[5, 17, 33, 8, 60, 41, 9], [70, 3, 25, 90], [11, 12, 80, 44, 23, 6, 77, 31, 50, 49]]


def golden_model(name, tmp_path, dropout=0.0, **kwargs):
    """The recorded model with the recorded prefix, and the golden."""
    golden = Golden.read(name)
    config = golden.meta["config"]
    model = add_prefix(
        load_model(str(golden.write(tmp_path)), **kwargs),
        num_virtual_tokens=config["pre_seq_len"],
        projection=config["prefix_projection"],
        dropout=dropout,
    )
    model.encoder().load_state_dict(golden.prefix)
    return model, golden


def greedy(model, rows, **kwargs):
    """The new tokens of each row, generated in one left-padded batch, cut at the end of the answer."""
    inputs = batch(rows, "left")
    out = model.generate(**inputs, max_new_tokens=12, do_sample=False, **kwargs)
    answers = out[:, inputs["input_ids"].shape[1] :].tolist()
    return [a[: a.index(2) + 1] if 2 in a else a for a in answers]


# -- equal to the original


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("attention", list(IMPLEMENTATIONS))
@pytest.mark.parametrize("name", PREFIX_GOLDENS)
def test_loss_logits_gradients_equal_the_original(name, attention, checkpointing, tmp_path):
    model, golden = golden_model(name, tmp_path, attn_implementation=attention)
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    out = model(input_ids=golden.tensors["input_ids"], labels=golden.tensors["labels"], use_cache=False)
    assert out.loss.item() == pytest.approx(golden.meta["loss"], abs=TOLERANCE)
    torch.testing.assert_close(out.logits, golden.tensors["logits"], atol=TOLERANCE, rtol=0)
    out.loss.backward()
    for key, parameter in model.encoder().named_parameters():
        want = golden.tensors[f"grad.{PREFIX_KEYS}{key}"]
        torch.testing.assert_close(parameter.grad, want, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", PREFIX_GOLDENS)
def test_left_padding_and_greedy_equal_the_original(name, tmp_path):
    model, golden = golden_model(name, tmp_path)
    model.eval()
    mask = golden.tensors["leftpad_attention_mask"]
    names = ("input_ids", "position_ids")
    logits = model(attention_mask=mask, **{n: golden.tensors[f"leftpad_{n}"] for n in names}).logits
    torch.testing.assert_close(
        logits[mask.bool()], golden.tensors["leftpad_logits"][mask.bool()], atol=TOLERANCE, rtol=0
    )
    for prompt, whole in zip(golden.meta["prompts"], golden.meta["greedy_12_new_tokens"], strict=True):
        assert greedy(model, [prompt]) == [whole[len(prompt) :]]


@pytest.mark.parametrize("name", PREFIX_GOLDENS)
def test_five_adamw_steps_equal_the_original(name, tmp_path):
    model, golden = golden_model(name, tmp_path)
    model.train()
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=2e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    losses = []
    for _ in range(5):
        loss = model(input_ids=golden.tensors["input_ids"], labels=golden.tensors["labels"]).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses == pytest.approx(golden.meta["adamw_lr2e-2_losses"], abs=TOLERANCE)
    for key, parameter in model.encoder().named_parameters():
        # Adam divides by the gradient's own size, so a difference of 1e-9 in a gradient near 0 becomes visible
        torch.testing.assert_close(parameter, golden.tensors[f"after5.{PREFIX_KEYS}{key}"], atol=2e-4, rtol=0)


def test_only_the_prefix_trains_and_it_is_float32(tmp_path):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        model, golden = golden_model("chatglm2_prefix", tmp_path / str(dtype), dtype=dtype)
        trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
        assert list(trainable) == ["prefix_encoder.default.embedding.weight"]
        out = model(input_ids=golden.tensors["input_ids"], labels=golden.tensors["labels"])
        out.loss.backward()
        (parameter,) = trainable.values()
        assert parameter.dtype == parameter.grad.dtype == torch.float32
        assert out.loss.item() == pytest.approx(golden.meta["loss"], abs=0.05)


# -- equal to itself


@pytest.mark.parametrize("family", list(CONFIGS))
def test_sdpa_equals_eager_and_batch_equals_single(family):
    answers = []
    for attention in IMPLEMENTATIONS:
        torch.manual_seed(1)
        model = add_prefix(random_base(family, attention), num_virtual_tokens=5).eval()
        together = greedy(model, ROWS)
        assert together == [greedy(model, [row])[0] for row in ROWS]
        answers.append(together)
    assert answers[0] == answers[1]
    with model.disable_adapter():
        assert greedy(model, ROWS) != answers[0]


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("projection", [False, True])
def test_cached_generation_equals_uncached(beams, projection):
    model = add_prefix(random_base("glm"), num_virtual_tokens=5, projection=projection).eval()
    with_cache, without = (greedy(model, ROWS, num_beams=beams, use_cache=c) for c in (True, False))
    assert with_cache == without


def test_dropout_is_per_row_and_only_in_training():
    model = add_prefix(random_base("glm"), num_virtual_tokens=5, dropout=0.5)
    inputs = batch([ROWS[0], ROWS[0]], "right")
    rows = model.train()(**inputs).logits
    assert not torch.allclose(rows[0], rows[1])
    rows = model.eval()(**inputs).logits
    assert torch.equal(rows[0], rows[1])


def test_gradients_with_dropout_are_equal_with_checkpointing():
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(3)
        model = add_prefix(random_base("glm"), num_virtual_tokens=5, dropout=0.3).train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        torch.manual_seed(4)
        inputs = batch(ROWS, "right")
        # two forward passes before one backward: each must recompute with its own prefix and its own dropout
        loss = sum(model(**inputs, labels=inputs["input_ids"], use_cache=False).loss for _ in range(2))
        loss.backward()
        gradients.append(model.encoder().embedding.weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-5)


# -- initialisation


@pytest.mark.parametrize("family", list(CONFIGS))
def test_text_initialisation_answers_as_the_base_with_the_text_in_front(family):
    base, text = random_base(family), [7, 50, 22, 91, 64]
    in_front = base(input_ids=torch.tensor([text + ROWS[0]])).logits[0, len(text) :]
    answers = greedy(base, [text + row for row in ROWS])
    model = add_prefix(base, initialisation="text", init_ids=text).eval()
    assert model.encoder().config.num_virtual_tokens == len(text)
    torch.testing.assert_close(model(input_ids=torch.tensor([ROWS[0]])).logits[0], in_front, atol=5e-5, rtol=0)
    assert greedy(model, ROWS) == answers


def test_text_is_repeated_to_the_length_asked_for():
    base = random_base("glm")
    repeated = add_prefix(copy.deepcopy(base), initialisation="text", init_ids=[7, 50, 22], num_virtual_tokens=5)
    written_out = add_prefix(base, initialisation="text", init_ids=[7, 50, 22, 7, 50])
    assert torch.equal(repeated.encoder().embedding.weight, written_out.encoder().embedding.weight)


def test_text_longer_than_a_sliding_window_is_refused():
    with pytest.raises(ValueError, match="sliding window"):
        add_prefix(random_base("qwen2_sliding"), initialisation="text", init_ids=list(range(3, 43)))


@pytest.mark.parametrize("projection", [False, True])
def test_zero_and_random_initialisation(projection):
    kwargs = {"num_virtual_tokens": 64, "projection": projection}
    assert add_prefix(random_base("glm"), initialisation="zero", **kwargs).encoder()().abs().max() == 0
    table = add_prefix(random_base("glm"), **kwargs).encoder().embedding.weight
    assert table.mean().abs() < 0.05
    assert table.std().item() == pytest.approx(1.0, abs=0.05)


# -- never silence


def test_changed_attention_implementation_is_an_error():
    model = add_prefix(random_base("glm"), num_virtual_tokens=5)
    model.base_model.set_attn_implementation("sdpa")
    with pytest.raises(RuntimeError, match="not in force"):
        model(**batch(ROWS, "right"))


def test_second_model_on_the_same_config_object_is_an_error():
    model = add_prefix(random_base("glm"), num_virtual_tokens=5)
    type(model.base_model)._from_config(model.base_model.config, attn_implementation="sdpa")
    with pytest.raises(RuntimeError, match="not in force"):
        model.generate(**batch(ROWS, "left"), max_new_tokens=2)


def test_prefix_that_does_not_reach_a_layer_is_an_error():
    model = add_prefix(random_base("glm"), num_virtual_tokens=5)
    layer = model.base_model.model.layers[1].self_attn
    forward = layer.forward
    layer.forward = lambda *args, prefix_states, **kwargs: forward(*args, **kwargs)
    with pytest.raises(RuntimeError, match="reached 2 of 3 layers"):
        model(**batch(ROWS, "right"))


# -- files


def test_adapter_directory_round_trip(tmp_path):
    model = add_prefix(random_base("glm"), num_virtual_tokens=5, projection=True).eval()
    model.save_pretrained(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"adapter_config.json", WEIGHTS_FILE}
    parameters = sum(p.numel() for p in model.encoder().parameters())
    assert parameters * 4 < (tmp_path / WEIGHTS_FILE).stat().st_size < parameters * 4 + 1000
    again = load_adapter(random_base("glm"), tmp_path, num_virtual_tokens=5).eval()
    inputs = batch(ROWS, "right")
    assert torch.equal(again(**inputs).logits, model(**inputs).logits)
    assert not any(p.requires_grad for p in again.parameters())
    assert any(p.requires_grad for p in load_adapter(random_base("glm"), tmp_path, trainable=True).parameters())


@pytest.mark.parametrize("name", PREFIX_GOLDENS)
def test_original_format_in_and_out(name, tmp_path):
    model, golden = golden_model(name, tmp_path / "base")
    export_adapter(model, tmp_path / "original", format="original")
    written = torch.load(tmp_path / "original" / ORIGINAL_FILE, weights_only=True)
    assert set(written) == {PREFIX_KEYS + k for k in golden.prefix}
    again = load_adapter(load_model(str(tmp_path / "base")), tmp_path / "original")
    ids = golden.tensors["input_ids"]
    torch.testing.assert_close(again(input_ids=ids).logits, golden.tensors["logits"], atol=TOLERANCE, rtol=0)


def test_adapter_for_another_base_or_length_is_refused(tmp_path):
    add_prefix(random_base("glm"), num_virtual_tokens=5).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"another base: expected .* found"):
        load_adapter(random_base("glm", seed=1), tmp_path)
    with pytest.raises(CheckpointError, match="has 5 virtual tokens, pre_seq_len asks for 8"):
        load_adapter(random_base("glm"), tmp_path, num_virtual_tokens=8)
    with pytest.raises(CheckpointError, match="expected 4 layers × 2 kv heads × 16, found 3"):
        load_adapter(load_model(str(Golden.read("chatglm2").write(tmp_path / "base"))), tmp_path)


def test_fingerprint_is_the_same_in_every_precision(tmp_path):
    base = Golden.read("chatglm2").write(tmp_path / "base")
    add_prefix(load_model(str(base)), num_virtual_tokens=5).save_pretrained(tmp_path / "adapter")
    for dtype in (torch.bfloat16, torch.float16):
        load_adapter(load_model(str(base), dtype=dtype), tmp_path / "adapter")


def test_directories_that_hold_no_prefix_are_refused(tmp_path):
    base = random_base("glm")
    with pytest.raises(CheckpointError, match="no such directory"):
        load_adapter(base, tmp_path / "missing")
    with pytest.raises(CheckpointError, match=r"no adapter here \(nothing\)"):
        load_adapter(base, tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(CheckpointError, match="does not fit this base"):
        load_adapter(base, tmp_path)


def test_several_adapters(tmp_path):
    names = ("first", "second")
    for seed, name in enumerate(names):
        torch.manual_seed(seed)
        single = add_prefix(random_base("glm"), num_virtual_tokens=4 + seed).eval()
        single.save_pretrained(tmp_path / name)
    together = load_adapter(random_base("glm"), tmp_path / "first", adapter_name="first")
    together.load_adapter(tmp_path / "second", "second")
    for name in ("second", "first", "second"):
        together.set_adapter(name, inference_mode=True)
        alone = load_adapter(random_base("glm"), tmp_path / name)
        assert greedy(together, ROWS) == greedy(alone, ROWS) == [greedy(together, [row])[0] for row in ROWS]
    together.save_pretrained(tmp_path / "both")
    assert {p.name for p in (tmp_path / "both").iterdir()} == {"first", "second"}
    together.set_adapter("first")
    together.delete_adapter("second")
    assert list(together.peft_config) == ["first"]

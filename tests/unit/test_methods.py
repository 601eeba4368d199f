"""Every method of PEFT on every base: exact in batches, in half precision and quantized, and on disk."""

import copy
import json

import peft
import pytest
import torch
from safetensors.torch import load_file

from softlaunch.errors import ArgumentError, CheckpointError
from softlaunch.models import load_model
from softlaunch.training.checkpoint import trained_tensors
from softlaunch.tuning import (
    SoftPromptModel,
    add_ia3,
    add_lora,
    add_p_tuning,
    add_prefix,
    add_prompt_tuning,
    digest,
    load_adapter,
    train_all,
    train_last_layers,
    trainable_summary,
)
from tests.bases import CONFIGS, RELEASED_GLM4, batch, random_base, write_released

FAMILIES = ["glm", "glm4", "llama", "qwen2_sliding", "qwen3"]
ROWS = [[5, 17, 33, 8, 60, 41, 9], [(7 * i) % 89 + 3 for i in range(19)], [70, 3, 25, 90]]
TEXT = [11, 54, 32, 7]

METHODS = {
    "lora": lambda base: add_lora(base, r=4),
    "rslora": lambda base: add_lora(base, r=4, rslora=True, target_modules="all-linear"),
    "dora": lambda base: add_lora(base, r=4, dora=True),
    "lora and lm_head": lambda base: add_lora(base, r=4, modules_to_save=["lm_head"]),
    "ia3": add_ia3,
    "prompt_tuning": lambda base: add_prompt_tuning(base, num_virtual_tokens=5),
    "prompt_tuning from text": lambda base: add_prompt_tuning(base, initialisation="text", init_ids=TEXT),
    "p_tuning mlp": lambda base: add_p_tuning(base, num_virtual_tokens=5, encoder="mlp"),
    "p_tuning lstm": lambda base: add_p_tuning(base, num_virtual_tokens=5, encoder="lstm", hidden_size=24),
    "prefix": lambda base: add_prefix(base, num_virtual_tokens=5, dropout=0.0),
    "prefix and lora": lambda base: add_prefix(add_lora(base, r=4), num_virtual_tokens=5, dropout=0.0),
}


def tuned(base, method):
    """With numbers that show in every answer: fresh LoRA does nothing, and IA3 multiplies by one."""
    torch.manual_seed(1)
    model = METHODS[method](base)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


@pytest.fixture(params=FAMILIES)
def base(request):
    return random_base(request.param)


def logits(model, rows=ROWS, side="right", **kwargs):
    """Of the real tokens, row after row."""
    inputs = batch(rows, side)
    with torch.no_grad():
        found = model(**inputs, use_cache=False, **kwargs).logits[:, -inputs["input_ids"].shape[1] :]
    return [row[mask.bool()] for row, mask in zip(found, inputs["attention_mask"], strict=True)]


def greedy(model, rows=ROWS):
    inputs = batch(rows, "left")
    with torch.no_grad():
        out = model.generate(**inputs, max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert torch.equal(out[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])
    return out[:, inputs["input_ids"].shape[1] :].tolist()


def loss_and_gradients(model, rows=ROWS, side="right"):
    inputs = batch(rows, side)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"].cumsum(-1) * inputs["attention_mask"] < 2, -100)
    loss = model(**inputs, labels=labels, use_cache=False).loss
    loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    return loss.item(), gradients


def assert_close(one, other, atol=1e-5):
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=atol * max(1.0, b.abs().max().item()))


@pytest.mark.parametrize("method", METHODS)
def test_a_row_in_a_padded_batch_is_computed_as_alone(base, method):
    model = tuned(base, method)
    alone = [logits(model, [row])[0] for row in ROWS]
    assert_close(logits(model, side="right"), alone)
    assert_close(logits(model, side="left"), alone)
    answers = greedy(model)
    assert answers == [greedy(model, [row])[0] for row in ROWS]
    steps = [row + answer for row, answer in zip(ROWS, answers, strict=True)]  # without a cache
    for row, ids in zip(ROWS, steps, strict=True):
        assert logits(model, [ids])[0][len(row) - 1 : -1].argmax(-1).tolist() == ids[len(row) :]
    with model.disable_adapter():
        assert greedy(model) == greedy(model.get_base_model()) != answers


@pytest.mark.parametrize("method", METHODS)
def test_checkpointing_and_chosen_columns(base, method):
    model = tuned(base, method).train()
    loss, gradients = loss_and_gradients(model)
    assert gradients
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in gradients.values())
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    again = loss_and_gradients(model)
    assert again[0] == pytest.approx(loss, rel=1e-6)
    assert_close(again[1].values(), gradients.values(), atol=1e-6)
    columns = torch.tensor([1, 3, 4])
    inputs = batch(ROWS, "right")
    with torch.no_grad():
        every = model.eval()(**inputs, use_cache=False).logits[:, -inputs["input_ids"].shape[1] :]
        chosen = model(**inputs, use_cache=False, logits_to_keep=columns).logits
    assert_close(chosen, every[:, columns])


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("method", METHODS)
def test_trainables_are_float32_on_any_base(method, bits, tmp_path):
    path = str(write_released(tmp_path / "base", RELEASED_GLM4))
    kind = {"dtype": torch.bfloat16} if bits == 16 else {"quantization_bit": bits}
    half = load_model(path, **kind)
    if (method, bits) == ("dora", 8):
        with pytest.raises(ArgumentError, match="8-bit base on the CPU"):
            METHODS[method](half)
        return
    model = tuned(half, method).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16, enabled=bits == 16):
        loss, gradients = loss_and_gradients(model)
    assert all(torch.isfinite(g).all() and g.abs().max() > 0 for g in gradients.values())
    greedy(model.eval())
    if bits == 16:
        whole = tuned(copy.deepcopy(load_model(path, dtype=torch.bfloat16)).float(), method).train()
        assert loss == pytest.approx(loss_and_gradients(whole)[0], rel=0.02)


@pytest.mark.parametrize("method", [*METHODS, "full", "freeze"])
def test_gradients_can_be_unscaled_under_fp16(method, tmp_path):
    """Where weights that train are float16, the loss scaler of every trainer stops: Attempting to unscale FP16."""
    whole = {"full": train_all, "freeze": lambda base: train_last_layers(base, 1)}
    base = load_model(str(write_released(tmp_path, RELEASED_GLM4)), dtype=torch.float16)
    model = {**METHODS, **whole}[method](base).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    scaler, optimizer = torch.amp.GradScaler("cpu", init_scale=16.0), torch.optim.AdamW(trained, lr=1e-3)
    with torch.autocast("cpu", torch.float16):
        loss = model(**batch(ROWS, "right"), labels=batch(ROWS, "right")["input_ids"], use_cache=False).loss
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    assert all(torch.isfinite(p.grad).all() for p in trained)
    scaler.step(optimizer)


@pytest.mark.parametrize("method", METHODS)
def test_a_directory_holds_what_was_trained_and_loads_again(method, tmp_path):
    model = tuned(random_base("glm"), method)
    model.save_pretrained(tmp_path, state_dict=trained_tensors(model))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    written = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
    slack = 5 * 64 * 4 if "p_tuning" in method else 0  # what the encoder computed, which is what stock PEFT reads
    assert trained * 4 <= written <= trained * 4 + slack + 20_000
    names = {file.name for file in tmp_path.rglob("*") if file.is_file()}
    assert names <= {"adapter_config.json", "adapter_model.safetensors", "softlaunch.json"}
    before, answers = logits(model), greedy(model)

    loaded = load_adapter(random_base("glm"), tmp_path).eval()
    assert not [n for n, p in loaded.named_parameters() if p.requires_grad]
    assert_close(logits(loaded), before, atol=1e-6)
    assert greedy(loaded) == answers
    assert digest(loaded) == digest(model)
    further = load_adapter(random_base("glm"), tmp_path, trainable=True).train()
    assert_close(loss_and_gradients(further)[1].values(), loss_and_gradients(model.train())[1].values())
    further.save_pretrained(tmp_path / "again")
    for file in tmp_path.glob("**/adapter_model.safetensors"):
        if "again" not in file.parts:
            for name, tensor in load_file(tmp_path / "again" / file.relative_to(tmp_path)).items():
                assert torch.equal(tensor, load_file(file)[name])


@pytest.mark.parametrize("method", [m for m in METHODS if "prefix" not in m])
def test_stock_peft_loads_the_directory(method, tmp_path, recwarn):
    model = tuned(random_base("llama"), method)
    model.save_pretrained(tmp_path)
    stock = peft.PeftModel.from_pretrained(random_base("llama"), tmp_path).eval()
    assert_close(logits(stock), logits(model))
    assert not [str(w.message) for w in recwarn if "softlaunch" in str(w.message) or "nexpected" in str(w.message)]


@pytest.mark.parametrize("method", [m for m in METHODS if "prefix" not in m])
def test_adapters_of_stock_peft_are_loaded(method, tmp_path):
    config = tuned(random_base("glm"), method).peft_config["default"]
    config.inference_mode = False
    torch.manual_seed(2)
    stock = peft.get_peft_model(random_base("glm"), config).eval()
    stock.save_pretrained(tmp_path)
    assert_close(logits(load_adapter(random_base("glm"), tmp_path).eval()), logits(stock))
    if method.startswith("p_tuning"):
        with pytest.raises(CheckpointError, match="not the encoder"):
            load_adapter(random_base("glm"), tmp_path, trainable=True)


def test_soft_prompt_is_the_concatenation_of_embeddings(base):
    """And a prompt from text is that text."""
    model = tuned(base, "prompt_tuning")
    table = model.prompt_encoder["default"].embedding.weight
    for row in ROWS:
        embeds = torch.cat([table[None], base.get_input_embeddings()(torch.tensor([row]))], dim=1)
        plain = base(inputs_embeds=embeds).logits[0, len(table) :]
        assert_close([logits(model, [row])[0]], [plain])
        out = base.generate(inputs_embeds=embeds, max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)
        assert greedy(model, [row]) == out.tolist()


def test_prompt_from_text_is_the_text():
    model = add_prompt_tuning(random_base("glm"), initialisation="text", init_ids=TEXT).eval()
    assert model.peft_config["default"].num_virtual_tokens == len(TEXT)
    plain = random_base("glm")
    for row in ROWS:
        assert_close(logits(model, [row]), [logits(plain, [TEXT + row])[0][len(TEXT) :]])
    longer = add_prompt_tuning(random_base("glm"), num_virtual_tokens=6, initialisation="text", init_ids=TEXT)
    assert torch.equal(longer.prompt(), plain.get_input_embeddings()(torch.tensor([*TEXT, *TEXT[:2]])))
    words = add_prompt_tuning(random_base("glm"), num_virtual_tokens=6, initialisation="vocabulary").prompt()
    table = plain.get_input_embeddings().weight
    assert all((table == word).all(1).any() for word in words)


@pytest.mark.parametrize(
    ("family", "asked", "found"),
    [
        ("glm", "auto", {"q_proj", "k_proj", "v_proj"}),
        ("llama", "auto", {"q_proj", "v_proj"}),
        ("qwen3", "auto", {"q_proj", "v_proj"}),
        ("glm", "query_key_value", {"q_proj", "k_proj", "v_proj"}),
        ("glm4", ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"], None),
        ("glm", "q_proj, v_proj", {"q_proj", "v_proj"}),
        ("llama", r".*layers\.[12]\..*(up|down)_proj", {"up_proj", "down_proj"}),
        ("glm", "all-linear", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"}),
    ],
)
def test_targets(family, asked, found):
    model = add_lora(random_base(family), target_modules=asked)
    layers = {name.split(".lora_A")[0].rpartition(".")[2] for name, _ in model.named_parameters() if "lora_A" in name}
    assert layers == (found or {"q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"})


@pytest.mark.parametrize("asked", ["query_key", ["q_proj", "wv"], r"layers\.9\..*", "[unclosed"])
def test_targets_that_match_nothing_list_what_there_is(asked):
    with pytest.raises(ArgumentError, match=r"query_key|wv|layers|unclosed") as error:
        add_lora(random_base("glm"), target_modules=asked)
    assert asked == "[unclosed" or "gate_up_proj" in str(error.value)


def test_other_impossible_requests():
    with pytest.raises(ArgumentError, match="at least 1"):
        add_lora(random_base("glm"), r=0)
    with pytest.raises(ArgumentError, match="modules_to_save"):
        add_lora(random_base("glm"), modules_to_save=["score"])
    with pytest.raises(ArgumentError, match="not among"):
        add_ia3(random_base("glm"), target_modules=["k_proj"], feedforward_modules=["down_proj"])
    with pytest.raises(ArgumentError, match="pre_seq_len"):
        add_prompt_tuning(random_base("glm"))
    with pytest.raises(ArgumentError, match="prompt_init_text"):
        add_prompt_tuning(random_base("glm"), initialisation="text")


@pytest.mark.parametrize("method", METHODS)
def test_another_base_is_refused(method, tmp_path):
    tuned(random_base("glm"), method).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"another base: expected .* found .* of 128 numbers"):
        load_adapter(random_base("glm", seed=5), tmp_path)
    if "prefix" in method:
        return
    (tmp_path / "softlaunch.json").unlink()
    other = CONFIGS["llama"]()
    other.hidden_size, other.head_dim, other.num_hidden_layers = 32, 8, 2
    with pytest.raises(CheckpointError, match=r"does not fit this base"):
        load_adapter(type(random_base("llama"))(other), tmp_path)


def test_a_base_that_it_was_merged_into_is_refused(tmp_path):
    tuned(random_base("glm"), "lora").save_pretrained(tmp_path)
    merged = load_adapter(random_base("glm"), tmp_path).merge_and_unload()
    with pytest.raises(CheckpointError, match=r"another base: .* of 128 numbers"):
        load_adapter(merged, tmp_path)
    file = tmp_path / "softlaunch.json"
    base = json.loads(file.read_text())
    file.write_text(json.dumps(base | {"base_fingerprint": base["base_fingerprint"][:64]}))  # an earlier adapter
    load_adapter(random_base("glm"), tmp_path)
    with pytest.raises(CheckpointError, match=r"of 64 numbers"):
        load_adapter(random_base("glm", seed=5), tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", '{"peft_type": "NOVEL"}', '{"peft_type": "LORA", "r": "x"}'])
def test_damaged_directories_are_told(content, tmp_path):
    (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"adapter_config\.json|does not fit"):
        load_adapter(random_base("glm"), tmp_path)
    add_lora(random_base("glm")).save_pretrained(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"cut off")
    with pytest.raises(CheckpointError, match="does not fit"):
        load_adapter(random_base("glm"), tmp_path)
    (tmp_path / "softlaunch.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"softlaunch\.json"):
        load_adapter(random_base("glm"), tmp_path)


def test_summary_counts_and_places():
    summary = trainable_summary(add_lora(random_base("glm"), r=4))
    assert summary.places == {
        "layers.0-2.self_attn.q_proj": 3 * 4 * (64 + 64),
        "layers.0-2.self_attn.k_proj": 3 * 4 * (64 + 32),
        "layers.0-2.self_attn.v_proj": 3 * 4 * (64 + 32),
    }
    assert summary.trainable == sum(summary.places.values())
    base = sum(p.numel() for p in random_base("glm").parameters())
    assert summary.total == base + summary.trainable
    assert summary.share == pytest.approx(summary.trainable / summary.total)


def test_summary_of_the_other_methods():
    prefix = trainable_summary(METHODS["prefix and lora"](random_base("glm"))).places
    assert prefix.pop("prefix_encoder") == 5 * 3 * 2 * 2 * 16
    assert set(prefix) == {f"layers.0-2.self_attn.{name}_proj" for name in "qkv"}
    assert set(trainable_summary(METHODS["p_tuning lstm"](random_base("glm"))).places) == {"prompt_encoder"}
    assert "lm_head" in trainable_summary(METHODS["lora and lm_head"](random_base("glm"))).places
    last = trainable_summary(train_last_layers(random_base("glm"), 2))
    assert {place.rpartition(".")[0] for place in last.places} == {"layers.1-2"}
    full = trainable_summary(train_all(random_base("glm")))
    assert {"embed_tokens", "layers.0-2.mlp", "lm_head"} <= set(full.places)
    assert full.share == 1


def test_prompt_encoder_of_the_trainer_is_saved_without_the_model_holding_it(tmp_path):
    """Under ZeRO-3 the tensors come from elsewhere."""
    model = tuned(random_base("glm"), "p_tuning lstm")
    assert isinstance(model, SoftPromptModel)
    whole, expected = trained_tensors(model), model.prompt().detach().clone()
    whole = {name: tensor.clone() for name, tensor in whole.items()}
    with torch.no_grad():
        for parameter in model.prompt_encoder.parameters():
            parameter.zero_()
    model.save_pretrained(tmp_path, state_dict=whole)
    assert_close([load_file(tmp_path / "adapter_model.safetensors")["prompt_embeddings"]], [expected])
    assert json.loads((tmp_path / "adapter_config.json").read_text())["inference_mode"] is True

"""P-Tuning v2 with everything else that people fit and scale with: one test per pair, each on every base.

"Equal" means the loss and the gradient of the prefix with the other feature off and on.
"""

import copy
import warnings

import pytest
import torch

from softlaunch.errors import ArgumentError
from softlaunch.models import load_model
from softlaunch.tuning import PrefixModel, add_prefix, load_adapter
from tests.bases import CONFIGS, RELEASED_GLM4, Golden, batch, random_base, write_released

BASES = ["chatglm2", *CONFIGS]
# The second row is longer than the sliding window of 24
ROWS = [[5, 17, 33, 8, 60, 41, 9], [(7 * i) % 89 + 3 for i in range(34)], [70, 3, 25, 90]]
LENGTH = 5


@pytest.fixture(params=BASES)
def base(request, tmp_path):
    return make_base(request.param, tmp_path)


def make_base(family, tmp_path):
    if family == "chatglm2":
        return load_model(str(Golden.read("chatglm2").write(tmp_path / "base")))
    return random_base(family)


def prefixed(base, *, seed=1, **kwargs) -> PrefixModel:
    """A prefix of the same numbers every time; no dropout unless asked for."""
    torch.manual_seed(seed)
    return add_prefix(base, num_virtual_tokens=LENGTH, **{"dropout": 0.0, **kwargs})


def loss_and_gradients(model, rows=ROWS, side="right", call=None):
    """In training mode; the gradients of the active prefix by parameter name, which are left empty."""
    inputs = batch(rows, side)
    # Not the first token of a row either: a left-padded one would be predicted from padding
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"].cumsum(-1) * inputs["attention_mask"] < 2, -100)
    model.train()
    loss = (model if call is None else call)(**inputs, labels=labels, use_cache=False).loss
    loss.backward()
    encoder = model.encoder(model.active_adapter)
    gradients = {name: parameter.grad for name, parameter in encoder.named_parameters()}
    model.zero_grad()
    return loss.item(), gradients


def assert_equal(one, other, rtol=1e-4):
    """Loss and gradients equal, these by their largest difference relative to the largest number."""
    assert one[0] == pytest.approx(other[0], rel=rtol)
    assert set(one[1]) == set(other[1])
    for name, gradient in one[1].items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(gradient, other[1][name], rtol=0, atol=rtol * gradient.abs().max().item())


def greedy(model, rows=ROWS, **kwargs):
    """The new tokens of each row, generated in one left-padded batch, cut at the end of the answer."""
    inputs = batch(rows, "left")
    with torch.no_grad():
        out = model.eval().generate(**inputs, max_new_tokens=8, do_sample=False, **kwargs)
    answers = out[:, inputs["input_ids"].shape[1] :].tolist()
    return [a[: a.index(2) + 1] if 2 in a else a for a in answers]


@pytest.mark.parametrize("projection", [False, True])
def test_gradient_checkpointing(base, projection):
    model = prefixed(base, projection=projection)
    plain = loss_and_gradients(model)
    model.gradient_checkpointing_enable()
    assert_equal(loss_and_gradients(model), plain, rtol=1e-6)


def test_reentrant_checkpointing_is_refused():
    with pytest.raises(ArgumentError, match="use_reentrant"):
        prefixed(random_base("glm")).gradient_checkpointing_enable({"use_reentrant": True})


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("family", BASES)
def test_quantized_base(family, bits, tmp_path):
    """The same rounded weights, packed and unpacked; the prefix itself is never rounded."""
    if family == "chatglm2":
        write_released(tmp_path, {**RELEASED_GLM4, "rope_ratio": 1}, num_shards=2)
    else:
        random_base(family).save_pretrained(tmp_path)
    unpacked = loss_and_gradients(prefixed(load_model(str(tmp_path), quantization_bit=bits).dequantize()))
    model = prefixed(load_model(str(tmp_path), quantization_bit=bits))
    assert_equal(loss_and_gradients(model), unpacked)
    assert all(p.dtype == torch.float32 for p in model.encoder().parameters())
    model.gradient_checkpointing_enable()
    assert_equal(loss_and_gradients(model), unpacked)
    # The full-precision base has other weights: the test above does not pass by chance
    assert abs(loss_and_gradients(prefixed(load_model(str(tmp_path))))[0] - unpacked[0]) > 1e-4


def test_bf16_base(base):
    rounded = copy.deepcopy(base).bfloat16()
    exact = loss_and_gradients(prefixed(copy.deepcopy(rounded).float()))
    model = prefixed(rounded)
    half = loss_and_gradients(model)
    assert_equal(half, exact, rtol=0.05)
    assert all(gradient.dtype == torch.float32 for gradient in half[1].values())


def test_left_padding(base):
    model = prefixed(base)
    right = loss_and_gradients(model, side="right")
    assert_equal(loss_and_gradients(model, side="left"), right)  # without position_ids
    singles = [loss_and_gradients(model, [row]) for row in ROWS]
    num_labels = [len(row) - 1 for row in ROWS]
    loss = sum(n * single[0] for n, single in zip(num_labels, singles, strict=True)) / sum(num_labels)
    assert right[0] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_generation_by_beams_cached_and_in_batches(base, num_beams):
    model = prefixed(base)
    answers = greedy(model, num_beams=num_beams)
    assert answers == greedy(model, num_beams=num_beams, use_cache=False)
    assert answers == [greedy(model, [row], num_beams=num_beams)[0] for row in ROWS]
    assert answers == greedy(model, num_beams=num_beams, cache_implementation="static")
    with model.disable_adapter():
        assert greedy(model, num_beams=num_beams) != answers


def test_projection(base):
    """A projected prefix does what its result does as a table, and its gradient is that table's by the chain rule."""
    model = prefixed(base, projection=True)
    encoder = model.encoder()
    loss, gradients = loss_and_gradients(model)
    states = encoder()
    plain = prefixed(model.unload())
    plain.encoder().set_states(states)
    plain_loss, plain_gradients = loss_and_gradients(plain)
    by_states = plain_gradients["embedding.weight"].view(LENGTH, states.shape[0], 2, states.shape[2], states.shape[4])
    names, parameters = zip(*encoder.named_parameters(), strict=True)
    chained = torch.autograd.grad(states, parameters, grad_outputs=by_states.permute(1, 2, 3, 0, 4))
    assert_equal((loss, gradients), (plain_loss, dict(zip(names, chained, strict=True))))


def test_several_adapters(base, tmp_path):
    alone = {}
    for seed, name in enumerate(("first", "second")):
        model = prefixed(base, seed=seed, projection=name == "second")
        model.save_pretrained(tmp_path / name)
        alone[name] = loss_and_gradients(model), greedy(model)
        model.unload()
    model = load_adapter(base, tmp_path / "first", adapter_name="first", trainable=True)
    model.load_adapter(tmp_path / "second", "second")
    for encoder in model.prefix_encoder.values():
        encoder.config.prefix_dropout = 0.0
    for name, other in (("second", "first"), ("first", "second"), ("second", "first")):
        model.set_adapter(name)
        assert_equal(loss_and_gradients(model), alone[name][0], rtol=1e-6)
        assert all(p.grad is None and not p.requires_grad for p in model.encoder(other).parameters())
        assert greedy(model) == alone[name][1] == [greedy(model, [row])[0] for row in ROWS]


def test_disable_adapter(base):
    inputs = batch(ROWS, "right")
    bare = base(**inputs).logits
    model = prefixed(base)
    before = loss_and_gradients(model)
    with model.disable_adapter():
        assert torch.equal(model.eval()(**inputs).logits, bare)
        assert not model(**inputs).logits.requires_grad
    assert not torch.equal(model(**inputs).logits, bare)
    assert_equal(loss_and_gradients(model), before, rtol=0)
    assert torch.equal(model.unload()(**inputs).logits, bare)


def test_second_prefix_model_on_one_base_is_an_error():
    base = random_base("glm")
    first, second = prefixed(base), prefixed(base)
    with pytest.raises(RuntimeError, match="another PrefixModel already"):
        second(**batch(ROWS, "right"))
    first.unload()
    loss_and_gradients(prefixed(second.unload()))


# -- torch.compile

# Tracing costs seconds per graph: one base in the fast tier, all of them in CI
COMPILED = [pytest.param("chatglm2", "inductor", marks=pytest.mark.slow)] + [
    pytest.param(family, "eager" if family == "qwen2_sliding" else "aot_eager", marks=[pytest.mark.recipe] * slow)
    for family, slow in ((family, family != "qwen2_sliding") for family in BASES)
]


@pytest.fixture
def _fresh_compiler():
    torch.compiler.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch.compiler.reset()


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize(("family", "backend"), COMPILED)
def test_compiled_training(family, backend, tmp_path):
    model = prefixed(make_base(family, tmp_path))
    plain = loss_and_gradients(model)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    assert_equal(loss_and_gradients(model, call=compiled), plain)
    if backend == "eager":
        return
    model.gradient_checkpointing_enable()
    assert_equal(loss_and_gradients(model, call=compiled), plain)
    with model.disable_adapter():
        inputs = batch(ROWS, "right")
        model.eval()
        torch.testing.assert_close(compiled(**inputs).logits, model(**inputs).logits, rtol=0, atol=1e-4)


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize(("family", "backend"), COMPILED)
def test_compiled_generation(family, backend, tmp_path):
    model = prefixed(make_base(family, tmp_path))
    answers = greedy(model)
    model.base_model.compile(backend=backend)
    assert greedy(model, cache_implementation="static") == answers


@pytest.mark.usefixtures("_fresh_compiler")
def test_prefix_that_does_not_reach_a_layer_is_an_error_when_compiled():
    model = prefixed(random_base("llama")).eval()
    layer = model.base_model.model.layers[1].self_attn
    forward = layer.forward
    layer.forward = lambda *args, prefix_states, **kwargs: forward(*args, **kwargs)
    with pytest.raises(RuntimeError, match="reached 2 of 3 layers"):
        torch.compile(model, backend="eager", fullgraph=True)(**batch(ROWS, "right"))

"""Several adapters on one base: switched per call, turned off, deleted; each as if it were alone."""

import pytest
import torch

from softlaunch.errors import ArgumentError
from softlaunch.tuning import digest, load_adapter, use_adapters
from tests.bases import random_base
from tests.unit.test_methods import FAMILIES, ROWS, assert_close, greedy, logits, tuned


def saved(family, method, path, seed):
    """An adapter on disk, and what it answers alone."""
    model = tuned(random_base(family), method)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(path)
    return logits(model), greedy(model)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["lora", "ia3", "prompt_tuning", "p_tuning mlp", "prefix"])
def test_two_of_one_kind(family, method, tmp_path):
    alone = {name: saved(family, method, tmp_path / name, seed) for seed, name in enumerate(["one", "two"])}
    plain = logits(random_base(family)), greedy(random_base(family))
    model = load_adapter(random_base(family), tmp_path / "one", adapter_name="one").eval()
    model = load_adapter(model, tmp_path / "two", adapter_name="two").eval()
    assert model.active_adapter == "two"
    digests = set()
    for name in ("one", "two", "one"):
        with use_adapters(model, name):
            assert_close(logits(model), alone[name][0])
            assert greedy(model) == alone[name][1] == [greedy(model, [row])[0] for row in ROWS]
            digests.add(digest(model))
    with use_adapters(model):
        assert_close(logits(model), plain[0])
        assert greedy(model) == plain[1]
        digests.add(digest(model))
    assert len(digests) == 3
    assert model.active_adapter == "two"
    assert greedy(model) == alone["two"][1]
    model.set_adapter("one", inference_mode=True)
    model.delete_adapter("two")
    assert list(model.peft_config) == ["one"]
    assert greedy(model) == alone["one"][1]
    with pytest.raises(ArgumentError, match="no adapter named 'two'"), use_adapters(model, "two"):
        pass


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefix_with_a_lora(family, tmp_path):
    answers = {}
    for seed, (name, method) in enumerate([("p", "prefix"), ("l", "lora"), ("m", "lora")]):
        answers[name] = saved(family, method, tmp_path / name, seed)
    model = load_adapter(random_base(family), tmp_path / "l", adapter_name="l")
    model = load_adapter(model, tmp_path / "p", adapter_name="p")
    model = load_adapter(model, tmp_path / "m", adapter_name="m").eval()
    other = load_adapter(load_adapter(random_base(family), tmp_path / "p", adapter_name="p"), tmp_path / "l").eval()
    for name in ("p", "l", "m"):
        with use_adapters(model, name):
            assert_close(logits(model), answers[name][0])
            assert greedy(model) == answers[name][1]
    with use_adapters(model, "p", "l"):
        together = logits(model)
        assert greedy(model) == [greedy(model, [row])[0] for row in ROWS] == greedy(other)
        assert_close(together, logits(other))
        assert all((together[0] - answers[name][0][0]).abs().max() > 1e-3 for name in ("p", "l"))
    plain = random_base(family)
    with model.disable_adapter():
        assert_close(logits(model), logits(plain))
    with use_adapters(model):
        assert greedy(model) == greedy(plain)
    with pytest.raises(ArgumentError, match="of one kind"), use_adapters(model, "l", "m"):
        pass


def test_a_second_prefix_brings_its_lora(tmp_path):
    alone = {name: saved("glm", "prefix and lora", tmp_path / name, seed) for seed, name in enumerate(["a", "b"])}
    saved("glm", "prefix", tmp_path / "plain", 2)
    saved("glm", "lora", tmp_path / "l", 3)
    for first in ("a", "plain", "l"):
        model = load_adapter(random_base("glm"), tmp_path / first, adapter_name=first)
        model = load_adapter(model, tmp_path / "b", adapter_name="b").eval()
        assert_close(logits(model), alone["b"][0])
        with use_adapters(model, first):
            expected = load_adapter(random_base("glm"), tmp_path / first).eval()
            assert_close(logits(model), logits(expected))
        assert greedy(model) == alone["b"][1]
    model = load_adapter(load_adapter(random_base("glm"), tmp_path / "a", adapter_name="a"), tmp_path / "b").eval()
    model.set_adapter("a")
    assert_close(logits(model), alone["a"][0])
    model.save_pretrained(tmp_path / "again")  # `default` and, in a folder, `a`
    for name, folder in (("a", "again/a"), ("b", "again")):
        assert_close(logits(load_adapter(random_base("glm"), tmp_path / folder).eval()), alone[name][0])


def test_deleting(tmp_path):
    for seed, (name, method) in enumerate([("p", "prefix"), ("q", "prefix"), ("l", "lora"), ("m", "lora")]):
        saved("glm", method, tmp_path / name, seed)
    prefix = logits(load_adapter(random_base("glm"), tmp_path / "q").eval())
    model = random_base("glm")
    for name in ("l", "p", "m", "q"):
        model = load_adapter(model, tmp_path / name, adapter_name=name)
    for name, message in (("nope", "there are l, m, p, q"), ("q", "is active")):
        with pytest.raises(ArgumentError, match=message):
            model.delete_adapter(name)
    for name in ("l", "p", "m"):
        model.delete_adapter(name)
    assert model.lora is None
    assert_close(logits(model.eval()), prefix)
    model = load_adapter(random_base("glm"), tmp_path / "l", adapter_name="l")
    for name, message in (("nope", "no adapter named 'nope'"), ("l", "is the only adapter")):
        with pytest.raises(ArgumentError, match=message):
            model.delete_adapter(name)
    greedy(model)


def test_training_goes_on_with_what_was_trained_before_the_switch(tmp_path):
    saved("glm", "lora", tmp_path, 0)
    model = load_adapter(random_base("glm"), tmp_path, trainable=True)
    model = load_adapter(model, tmp_path, adapter_name="other")
    model.set_adapter("default")
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained
    with use_adapters(model, "other"):
        greedy(model)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == trained


@pytest.mark.parametrize(("first", "second"), [("lora", "ia3"), ("lora", "prompt_tuning"), ("prompt_tuning", "prefix")])
def test_kinds_that_do_not_go_together(first, second, tmp_path):
    for name in (first, second):
        saved("glm", name, tmp_path / name, 0)
    with pytest.raises(ArgumentError, match="cannot be put beside"):
        load_adapter(load_adapter(random_base("glm"), tmp_path / first), tmp_path / second, adapter_name="second")

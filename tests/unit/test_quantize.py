"""Bases in 4 and 8 bits: read shard by shard, and the same base to an adapter."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from softlaunch.errors import ArgumentError
from softlaunch.models import load_model
from softlaunch.models.quantize import own_gpu
from softlaunch.tuning import add_prefix, load_adapter
from softlaunch.tuning.fingerprint import fingerprint, num_differences
from tests.bases import RELEASED_GLM4, batch, write_released

ROWS = [[5, 17, 33, 8, 60, 41, 9], [70, 3, 25, 90]]


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    return str(write_released(tmp_path_factory.mktemp("released"), RELEASED_GLM4, num_shards=3))


@pytest.mark.parametrize(("bits", "kind", "tolerance"), [(4, "Linear4bit", 0.3), (8, "Linear8bitLt", 0.05)])
def test_blocks_are_quantized_and_the_rest_is_not(released, bits, kind, tolerance):
    full, packed = load_model(released), load_model(released, quantization_bit=bits)
    for name, module in full.named_modules():
        if isinstance(module, torch.nn.Linear):
            expected = "Linear" if name == "lm_head" else kind
            assert type(packed.get_submodule(name)).__name__ == expected
    assert torch.equal(packed.model.embed_tokens.weight, full.model.embed_tokens.weight)
    assert torch.equal(packed.model.layers[1].self_attn.k_proj.bias, full.model.layers[1].self_attn.k_proj.bias)
    logits, exact = (model(**batch(ROWS, "right")).logits[0] for model in (packed.train(), full))
    assert ((logits - exact).norm() / exact.norm()).item() < tolerance
    assert not torch.equal(logits, exact)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fingerprint_is_the_same_in_every_precision(released, bits, dtype):
    full, packed = (
        fingerprint(load_model(released)),
        fingerprint(load_model(released, quantization_bit=bits, dtype=dtype)),
    )
    assert num_differences(full, packed) == (0, 64)
    assert num_differences(full, fingerprint(load_model(released, dtype=dtype))) == (0, 128)


@pytest.mark.parametrize("bits", [(4, None), (None, 4), (8, None), (None, 8), (4, 8)])
def test_adapter_moves_between_precisions(released, bits, tmp_path):
    """Trained on the first, loaded on the second, in bf16 where they are not quantized."""
    first, second = (load_model(released, quantization_bit=b, dtype=torch.bfloat16) for b in bits)
    model = add_prefix(first, num_virtual_tokens=5).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    inputs = batch(ROWS, "right")
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    optimizer.step()
    model.save_pretrained(tmp_path)
    again = load_adapter(second, tmp_path)
    assert torch.equal(again.encoder().embedding.weight, model.encoder().embedding.weight)
    out = again.generate(**batch(ROWS, "left"), max_new_tokens=3, do_sample=False)
    assert out.shape == (2, 10)


@pytest.mark.parametrize("bits", [4, 8])
def test_an_evaluation_leaves_the_gradient_as_it_was(released, bits):
    model = add_prefix(load_model(released, quantization_bit=bits), num_virtual_tokens=5, dropout=0.0)
    inputs, gradients = batch(ROWS, "right"), []
    for _ in range(2):
        model.train()(**inputs, labels=inputs["input_ids"]).loss.backward()
        gradients.append(model.encoder().embedding.weight.grad.clone())
        model.zero_grad()
        with torch.no_grad():
            model.eval()(**inputs)
    assert gradients[0].any()
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-6)


def test_other_numbers_of_bits_are_refused(released):
    with pytest.raises(ArgumentError, match="quantization_bit is 3; allowed are 4 and 8"):
        load_model(released, quantization_bit=3)


def test_missing_bitsandbytes_is_named(released, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ArgumentError, match=r"softlaunch\[quantization\]"):
        load_model(released, quantization_bit=4)


@pytest.mark.parametrize(("local_rank", "num_gpus", "expected"), [("3", 4, 3), ("3", 1, 0), (None, 4, 2)])
def test_every_process_loads_onto_its_own_gpu(local_rank, num_gpus, expected, monkeypatch):
    if local_rank is None:
        monkeypatch.delenv("LOCAL_RANK", raising=False)
    else:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    monkeypatch.setattr(torch.cuda, "device", lambda index: contextlib.nullcontext(chosen.append(index)))
    with own_gpu():
        assert chosen == [expected]


_MEASURE = """
import json, re, sys, threading, time
from pathlib import Path
import torch
from softlaunch.models import load_model

def used():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

def watch():
    while not loaded:
        peak.append(max(peak.pop(), used()))
        time.sleep(0.0005)

small, large, bits = sys.argv[1], sys.argv[2], int(sys.argv[3])
load_model(small, quantization_bit=bits, dtype=torch.bfloat16)  # the libraries' own memory
before, loaded = used(), False
peak = [before]
watcher = threading.Thread(target=watch)
watcher.start()
model = load_model(large, quantization_bit=bits, dtype=torch.bfloat16)
loaded = True
watcher.join()
size = sum(p.numel() * p.element_size() for p in model.parameters())
print(json.dumps({"peak": peak[0] - before, "model": size}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's own count of memory")
@pytest.mark.parametrize("bits", [4, 8])
def test_peak_memory_is_the_quantized_model_and_one_shard(released, bits, tmp_path):
    """Of private memory: the pages of mapped shards are the file's, the system takes them back when it needs them."""
    shape = {"num_layers": 20, "hidden_size": 512, "ffn_hidden_size": 1536, "padded_vocab_size": 2048}
    heads = {"kv_channels": 64, "num_attention_heads": 8}
    large = write_released(tmp_path, {**RELEASED_GLM4, **shape, **heads}, num_shards=4, dtype=torch.bfloat16)
    shards = [file.stat().st_size for file in large.glob("*.safetensors")]
    # Blocks of this small model would otherwise stay on malloc's heap after they are freed; those of a real one do not
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20)}
    measured = json.loads(
        subprocess.run(
            [sys.executable, "-c", _MEASURE, released, str(large), str(bits)],
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.splitlines()[-1]
    )
    assert measured["model"] < 0.6 * sum(shards)
    assert measured["peak"] < measured["model"] + max(shards), measured

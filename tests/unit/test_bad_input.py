"""Wrong input, as a user of the recipe meets it: one message, exit code 2, no weights read, nothing lost."""

import contextlib
import json
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import softlaunch.models
from softlaunch import entry
from softlaunch.models import load_model
from softlaunch.tuning import add_prefix

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "ptuning_chatglm.py"
BASE = ROOT / "recipes" / "demo" / "base"
ROW = {"content": "类型#上衣", "summary": "这款上衣很好看。"}


class LoadedError(Exception):
    """The weights would be read now."""


@pytest.fixture
def tell(tmp_path, monkeypatch, capsys):
    """Runs the recipe with wrong options, in a directory that an earlier run has left; returns its one message."""

    def load_base(_: object) -> None:
        raise LoadedError

    def run(**options: object) -> str:
        output_dir = Path(str(options.setdefault("output_dir", tmp_path / "run")))
        if not output_dir.exists():
            output_dir.mkdir()
            for name in ("record.json", "metrics.jsonl", "predictions.jsonl"):
                (output_dir / name).write_text(f"earlier {name}")
        before = contents(output_dir)
        monkeypatch.setattr(sys, "argv", ["recipe.py", *flags(tmp_path, options)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(RECIPE), run_name="__main__")
        assert end.value.code == 2
        assert contents(output_dir) == before
        found = capsys.readouterr().err
        assert found.count("error: ") == 1
        return found

    monkeypatch.setattr(entry, "_set_up_logging", lambda: None)
    monkeypatch.setattr(softlaunch.models, "load_base", load_base)
    return run


def flags(tmp_path: Path, options: dict) -> list[str]:
    """Those of a run that would be right, with `options` on top; None leaves one out."""
    rows = tmp_path / "rows.json"
    if not rows.exists():
        rows.write_text(json.dumps(ROW, ensure_ascii=False) + "\n", encoding="utf-8")
    right = {"model_name_or_path": BASE, "do_train": True, "train_file": rows, "pre_seq_len": 4, "max_steps": 1}
    right |= {"prompt_column": "content", "response_column": "summary"}
    return [f"--{name}={value}" for name, value in {**right, **options}.items() if value is not None]


def contents(directory: Path) -> dict[str, str]:
    return {str(file): file.read_text() for file in directory.rglob("*") if file.is_file()}


def copy_base(directory: Path) -> Path:
    return Path(shutil.copytree(BASE, directory))


def test_right_input_gets_as_far_as_the_weights(tell):
    """So that the cases below fail for their own reason."""
    with pytest.raises(LoadedError):
        tell()


# -- arguments


@pytest.mark.parametrize(
    ("options", "messages"),
    [
        ({"learning_rat": 1e-3}, ["--learning_rat: there is no such option; did you mean --learning_rate?"]),
        ({"quantization_bit": 3}, ["--quantization_bit 3: must be one of 4, 8"]),
        (
            {"pre_seq_len": 0, "warmup_steps": "ten"},
            ["2 problems", "--pre_seq_len 0: must be a whole", "--warmup_steps"],
        ),
        ({"pre_seq_len": None}, ["pre_seq_len is not set: give the number of virtual tokens"]),
        ({"max_target_length": 0}, ["--max_target_length 0: must be a whole number at least 1"]),  # no label left
        ({"max_source_length": 1000}, ["rows of 1129 tokens", "at most 1024 positions"]),
        ({"attn_implementation": "flash_attention_2"}, ["'flash_attention_2' cannot take a prefix", "'sdpa'"]),
    ],
)
def test_arguments(tell, options, messages):
    found = tell(**options)
    assert all(message in found for message in messages), found


# -- rows


BAD_ROWS = {
    "missing file": (None, ["rows.jsonn does not exist", 'there is "rows.json"']),
    "wrong encoding, CRLF": (
        (json.dumps(ROW, ensure_ascii=False) + "\r\n").encode("gb18030") * 3,
        [":1: byte 0x", "is not utf-8", "类型#上衣", 'file_encoding to "gb18030"'],
    ),
    "broken line": ([ROW, '{"content": '], ["1 of 2 rows cannot be used", "1 × broken JSON", ":2: "]),
    "missing column": ([{"content": "a", "sumary": "b"}], ['no column "summary"', 'Did you mean "sumary"?']),
    "empty answers": ([ROW, {**ROW, "summary": " "}], ['1 × "summary" is empty', ":2", "skip_bad_rows"]),
    "answers that are numbers": ([{**ROW, "summary": 1}], ['"summary" is not a string', 'as text: "1"']),
    "empty file": ([], ["is empty. A data file needs at least one row"]),
    "argument file": ([{"train_file": "my.json", "output_dir": "x"}], ["is an argument file of a run", "my.json"]),
    "history that is no list of pairs": (
        [{**ROW, "history": ["a", "b"]}],
        ['"history" is no list of pairs of strings', ":1: ['a', 'b']"],
    ),
}


CASES = [("train", case) for case in BAD_ROWS] + [("validation", "broken line"), ("test", "broken line")]


@pytest.mark.parametrize(("kind", "case"), CASES)
def test_rows(tell, tmp_path, kind, case):
    content, messages = BAD_ROWS[case]
    file = tmp_path / ("rows.jsonn" if content is None else "bad.json")
    if isinstance(content, list):
        content = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in content).encode()
    if content is not None:
        file.write_bytes(content)
    step = {"train": {}, "validation": {"do_eval": True}, "test": {"do_predict": True}}[kind]
    if "history" in case:
        step["history_column"] = "history"
    found = tell(**{f"{kind}_file": file, **step})
    assert all(message in found for message in messages), found


def test_template_longer_than_the_limit(tell):
    """The prompt would be cut to nothing."""
    found = tell(max_source_length=3)
    assert "max_source_length is 3" in found
    assert "raise it" in found


# -- the base


def damaged_base(directory: Path, damage: str) -> None:
    """The demo's base in two shards, safetensors or `.bin`, damaged."""
    copy_base(directory)
    weights = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    is_bin, index = damage.endswith(".bin"), {}
    for number, part in enumerate((sorted(weights)[::2], sorted(weights)[1::2]), start=1):
        name = f"pytorch_model-{number}.bin" if is_bin else f"model-{number}.safetensors"
        tensors = {key: weights[key].contiguous() for key in part}
        torch.save(tensors, directory / name) if is_bin else save_file(tensors, directory / name)
        index |= dict.fromkeys(part, name)
    stem = "pytorch_model.bin" if is_bin else "model.safetensors"
    (directory / f"{stem}.index.json").write_text(json.dumps({"weight_map": index}))
    shard = directory / name
    if "header" in damage:
        os.truncate(shard, 100)
    elif "missing" in damage:
        shard.unlink()
    elif "cut off" in damage:
        os.truncate(shard, shard.stat().st_size - 1000)
    elif "pointer" in damage:
        shard.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    elif "index" in damage:
        (directory / f"{stem}.index.json").write_text("<html>")
    elif "nothing" in damage:
        for file in directory.glob("model*"):
            file.unlink()


@pytest.mark.parametrize(
    ("damage", "messages"),
    [
        ("nothing left", ["no weights here", "hf download"]),
        ("missing shard", ["1 of 2 weight files", "model-2.safetensors is missing", "hf download"]),
        ("missing shard, .bin", ["pytorch_model-2.bin is missing"]),
        ("shard cut off", ["model-2.safetensors is cut off: ", " bytes"]),
        ("shard cut off, .bin", ["pytorch_model-2.bin is cut off"]),
        ("shard cut off in its header", ["model-2.safetensors is cut off in its header"]),
        ("LFS pointer", ["model-2.safetensors is a Git LFS pointer", "git lfs pull"]),
        ("LFS pointer, .bin", ["pytorch_model-2.bin is a Git LFS pointer"]),
        ("index broken", ["model.safetensors.index.json", "is no index of weight files"]),
    ],
)
def test_incomplete_base(tell, tmp_path, damage, messages):
    damaged_base(tmp_path / "base", damage)
    found = tell(model_name_or_path=tmp_path / "base")
    assert all(message in found for message in messages), found


def test_whole_bin_shards_are_no_mistake(tell, tmp_path):
    damaged_base(tmp_path / "base", "none, .bin")
    with pytest.raises(LoadedError):
        tell(model_name_or_path=tmp_path / "base")


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        ({"position_encoding_2d": True}, ["ChatGLM-6B (v1)", "will come", "ChatGLM2-6B"]),
        ({"rmsnorm": False}, ["rmsnorm is False"]),
    ],
)
def test_other_networks(tell, tmp_path, change, messages):
    config = copy_base(tmp_path / "base") / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    found = tell(model_name_or_path=tmp_path / "base")
    assert all(message in found for message in messages), found


def test_config_that_is_no_json(tell, tmp_path):
    (copy_base(tmp_path / "base") / "config.json").write_text("{")
    assert "config.json: this is not valid JSON" in tell(model_name_or_path=tmp_path / "base")


def test_adapter_given_as_base(tell, tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    assert "holds an adapter and no base model" in tell(model_name_or_path=tmp_path / "adapter")


def test_misspelt_path_of_a_base_names_the_nearest_directory(tell, tmp_path, monkeypatch):
    copy_base(tmp_path / "models" / "chatglm2-6b")
    monkeypatch.chdir(tmp_path)
    found = tell(model_name_or_path="model/chatglm2_6b")
    assert "model/chatglm2_6b: no such directory" in found
    assert 'Did you mean "models/chatglm2-6b"?' in found


# -- the adapter


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("adapter")
    add_prefix(load_model(str(BASE)), num_virtual_tokens=4).save_pretrained(directory)
    return directory


def test_fitting_adapter_gets_as_far_as_the_weights(tell, adapter):
    with pytest.raises(LoadedError):
        tell(adapter=adapter)


def test_adapter_of_another_length(tell, adapter):
    found = tell(adapter=adapter, pre_seq_len=8)
    assert "has 4 virtual tokens, pre_seq_len asks for 8" in found


def test_adapter_of_another_method(tell, adapter):
    found = tell(adapter=adapter, pre_seq_len=4, lora_r=8)
    assert "lora_r is 8, the adapter's is p_tuning_v2" in found


def test_adapter_of_another_base(tell, adapter, tmp_path):
    config = copy_base(tmp_path / "base") / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_layers": 3}))
    found = tell(adapter=adapter, model_name_or_path=tmp_path / "base")
    assert "is for another model: expected 3 layers × 2 kv heads × 32, found 4 × 2 × 32" in found


def test_adapter_without_weights(tell, adapter, tmp_path):
    shutil.copy(adapter / "adapter_config.json", tmp_path)
    found = tell(adapter=tmp_path)
    assert "the adapter cannot be read" in found
    assert "adapter_model.safetensors" in found


def test_no_adapter_to_evaluate(tell, tmp_path):
    found = tell(do_train="false", do_predict=True, test_file=tmp_path / "rows.json")
    assert "there is no adapter to evaluate" in found


# -- the output directory


@contextlib.contextmanager
def read_only(directory: Path) -> Iterator[None]:
    """A small read-only file system: chmod does not stop root."""
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "ro,size=64k", "none", str(directory)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no permission to mount a file system: run the tests as root, in a container that may mount")
    try:
        yield
    finally:
        subprocess.run(["umount", str(directory)], check=True)


def test_output_directory_that_cannot_be_written(tell, tmp_path):
    with read_only(tmp_path / "frozen"):
        found = tell(output_dir=tmp_path / "frozen")
        assert "frozen cannot be written: Read-only file system; name a directory" in found

"""What is read may come from anybody: it is data, and stays in its place. What is written holds no secrets."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
from safetensors.torch import load_file, save_file

from softlaunch.data.read import read_rows
from softlaunch.errors import CheckpointError, DataError, UserError
from softlaunch.models import load_model, load_tokenizer
from softlaunch.training.checkpoint import rotate
from softlaunch.training.manifest import write_manifest
from softlaunch.training.unpickling import tensors_only
from softlaunch.tuning import load_adapter
from tests.bases import random_base

ROOT = Path(__file__).parents[2]
BASE = ROOT / "recipes" / "demo" / "base"


class Evil:
    """Pickled, it is a program that makes a file."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


@pytest.fixture
def trap(tmp_path):
    """A directory that is there once hostile code has run."""
    file = tmp_path / "code-was-run"
    yield Evil(file)
    assert not file.exists()


@pytest.fixture
def base(tmp_path):
    return Path(shutil.copytree(BASE, tmp_path / "base"))


def test_the_trap_works(tmp_path):
    pickle.loads(pickle.dumps(Evil(tmp_path / "made")))
    assert (tmp_path / "made").is_dir()


@pytest.mark.parametrize("legacy", [False, True])
def test_weights_of_a_base_run_nothing(legacy, base, trap):
    (base / "model.safetensors").unlink()
    torch.save({"a": trap}, base / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError):
        load_model(str(base))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "adapter_model.bin"])
def test_an_adapter_runs_nothing(name, tmp_path, trap):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    if name == "adapter_model.bin":
        config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "target_modules": ["q_proj"]}
        (adapter / "adapter_config.json").write_text(json.dumps(config))
    torch.save({"transformer.prefix_encoder.embedding.weight": trap}, adapter / name)
    with pytest.raises(CheckpointError):
        load_adapter(random_base("llama"), adapter)


def test_a_training_state_runs_nothing_though_its_reader_would_let_it(tmp_path, trap):
    """DeepSpeed reads its checkpoints with weights_only=False."""
    torch.save({"optimizer": trap}, tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match="more than tensors"), tensors_only():
        torch.load(tmp_path / "state.pt", weights_only=False)
    torch.save({"step": torch.ones(2)}, tmp_path / "state.pt")
    with tensors_only():
        assert torch.load(tmp_path / "state.pt", weights_only=False)["step"].sum() == 2
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_code_beside_a_checkpoint_is_never_run(base, trap):
    """There is no option that would: trust_remote_code is refused (see test_arguments)."""
    code = f"import os\nos.mkdir({str(trap.file)!r})\n"
    classes = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M", "AutoTokenizer": ["evil.T", None]}
    for name in ("config.json", "tokenizer_config.json"):
        content = json.loads((base / name).read_text())
        (base / name).write_text(json.dumps({**content, "auto_map": classes}))
    for name in ("evil.py", "__init__.py", "conftest.py"):
        (base / name).write_text(code)
    load_model(str(base))
    load_tokenizer(str(base))
    content = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**content, "model_type": "evil", "architectures": ["M"]}))
    with pytest.raises(UserError):
        load_model(str(base))


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "a/../../secret.safetensors", "..\\secret"])
def test_an_index_names_no_file_elsewhere(name, base):
    tensors = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    save_file(tensors, base.parent / "secret.safetensors", metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, name)}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="outside of its directory"):
        load_model(str(base))


def test_a_saved_dataset_names_no_file_elsewhere(tmp_path):
    rows = datasets.Dataset.from_list([{"prompt": "a", "response": "b"}])
    rows.save_to_disk(tmp_path / "rows")
    shutil.move(tmp_path / "rows" / "data-00000-of-00001.arrow", tmp_path / "secret.arrow")
    state = json.loads((tmp_path / "rows" / "state.json").read_text())
    state["_data_files"] = [{"filename": "../secret.arrow"}]
    (tmp_path / "rows" / "state.json").write_text(json.dumps(state))
    with pytest.raises(DataError, match="outside of its directory"):
        read_rows(tmp_path / "rows", prompt_column="prompt", response_column="response", cache_dir=tmp_path)


def test_a_run_file_deletes_nothing_elsewhere(tmp_path):
    """`earlier` names the checkpoints that go when a run begins anew."""
    new = tmp_path / "run" / "checkpoint-1"
    new.mkdir(parents=True)
    write_manifest(new, {"run_id": "mine"})
    others = [tmp_path / "other", tmp_path / "run" / "adapter", tmp_path / "checkpoint-2"]
    for other in others:
        other.mkdir()
    names = ["../other", str(tmp_path / "other"), "adapter", "../checkpoint-2", "checkpoint-1/../../other", ".", ".."]
    rotate(tmp_path / "run", new, {"id": "mine", "earlier": names}, limit=1, best="../../other")
    assert all(other.is_dir() for other in [*others, new])


WITHOUT_NETWORK = """
import socket, sys
def refuse(*args, **kwargs):
    raise SystemExit(f"network: {args}")
connect = socket.socket.connect
def local_only(self, address, *rest):
    return connect(self, address, *rest) if self.family == socket.AF_UNIX else refuse(address)
socket.socket.connect = socket.socket.connect_ex = local_only
socket.getaddrinfo = socket.gethostbyname = socket.create_connection = refuse
import runpy
sys.argv[:] = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_run_on_local_files_asks_no_network_and_keeps_secrets_to_itself(tmp_path):
    """A whole run: training with a checkpoint, evaluation, prediction, TensorBoard; and none of its tokens in a file or
    in what it says."""
    rows = tmp_path / "rows.json"
    lines = (ROOT / "recipes/demo/train.json").read_text(encoding="utf-8").splitlines(keepends=True)
    rows.write_text("".join(lines[:4]), encoding="utf-8")
    options = {"model_name_or_path": BASE, "train_file": rows, "validation_file": rows, "test_file": rows}
    options |= {"prompt_column": "content", "response_column": "summary", "output_dir": tmp_path / "run"}
    options |= {"pre_seq_len": 2, "max_steps": 1, "save_steps": 1, "val_max_target_length": 2, "max_target_length": 8}
    options |= {"hub_token": "s3cret-one", "token": "s3cret-two", "report_to": "tensorboard"}
    options |= {"lr_scheduler_type": "cosine_with_min_lr"}
    options |= {"lr_scheduler_kwargs": '{"min_lr": 0.0}'}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-c", WITHOUT_NETWORK, str(ROOT / "recipes/ptuning_chatglm.py"), *words]
    env = {name: value for name, value in os.environ.items() if not name.startswith(("HF_HUB", "TRANSFORMERS_"))}
    env |= {"HF_TOKEN": "hf_s3cretfour", "HF_DATASETS_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0"}
    command += ["--do_train", "--do_eval", "--do_predict"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {"record.json", "run.json", "predictions.jsonl", "trainer_state.json"} <= {file.name for file in files}
    assert any("tfevents" in file.name for file in files)
    assert not [file for file in files if b"s3cret" in file.read_bytes()]
    assert "s3cret" not in done.stdout + done.stderr

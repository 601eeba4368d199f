"""Every launch file and DeepSpeed file, read by the libraries that will read them."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import (
    DeepSpeedPlugin,
    FullyShardedDataParallelPlugin,
    prepare_deepspeed_cmd_env,
    prepare_multi_gpu_env,
)
from transformers import GlmConfig
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

from softlaunch import entry
from softlaunch.arguments import TrainingArguments

ROOT = Path(__file__).parents[2]
LAUNCH_FILES = sorted((ROOT / "launch" / "accelerate").glob("*.yaml"))
DEEPSPEED_FILES = sorted((ROOT / "ds_configs").glob("*.json"))
TYPES = {"cpu": "NO", "single_gpu": "NO", "ddp": "MULTI_GPU", "fsdp2": "FSDP"}


def name(file):
    return file.stem


def launcher_environment(file, monkeypatch, *flags):
    """What `accelerate launch` makes of a file, put into this process's environment."""
    command = ["--config_file", str(file), "--main_process_port", "0", *flags, "recipe.py"]
    args, defaults, has_precision = _validate_launch_command(launch_command_parser().parse_args(command))
    if args.use_deepspeed:
        fields = [*defaults.deepspeed_config, *(["mixed_precision"] if has_precision else [])]
        args.deepspeed_fields_from_accelerate_config = ",".join(fields)
        _, environment = prepare_deepspeed_cmd_env(args)
    else:
        environment = prepare_multi_gpu_env(args)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    return args


def test_files_are_all_there():
    zero = {"zero1", "zero2", "zero3", "zero2_offload", "zero3_offload"}
    assert {file.stem for file in LAUNCH_FILES} == {"cpu", "single_gpu", "ddp", "fsdp2"} | zero
    assert {file.stem for file in DEEPSPEED_FILES} == zero


@pytest.mark.parametrize("file", LAUNCH_FILES, ids=name)
def test_launch_file(file):
    config = load_config_from_file(str(file))
    assert file.read_text().startswith("# ")
    assert config.distributed_type.value == TYPES.get(file.stem, "DEEPSPEED")
    assert config.use_cpu == (file.stem == "cpu")
    assert config.num_machines == 1
    # -1: accelerate asks for --num_processes instead of taking a number that is not the machine's
    assert config.num_processes == (1 if file.stem in ("cpu", "single_gpu") else -1)
    assert config.mixed_precision in ("no", None), "the precision belongs to the run's arguments"
    if file.stem.startswith("zero"):
        assert config.deepspeed_config == {"deepspeed_config_file": f"ds_configs/{file.stem}.json"}


@pytest.mark.parametrize("file", [f for f in LAUNCH_FILES if f.stem.startswith("zero")], ids=name)
def test_deepspeed_plugin_of_a_launch_file(file, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [str(ROOT / "recipes" / "ptuning_chatglm.py")])
    args = launcher_environment(file, monkeypatch, "--num_processes", "8")
    assert args.nproc_per_node == "8"
    entry.run(lambda: None)
    assert Path(os.environ["ACCELERATE_DEEPSPEED_CONFIG_FILE"]) == ROOT / "ds_configs" / f"{file.stem}.json"
    plugin = DeepSpeedPlugin()
    assert plugin.zero_stage == int(file.stem[4])
    assert plugin.zero3_init_flag == file.stem.startswith("zero3")
    assert plugin.offload_optimizer_device == ("cpu" if "offload" in file.stem else "none")
    assert plugin.offload_param_device == ("cpu" if file.stem == "zero3_offload" else "none")


def test_fsdp_plugin_of_its_launch_file(monkeypatch):
    launcher_environment(ROOT / "launch" / "accelerate" / "fsdp2.yaml", monkeypatch, "--num_processes", "8")
    plugin = FullyShardedDataParallelPlugin()
    assert (plugin.fsdp_version, plugin.reshard_after_forward) == (2, True)
    assert type(plugin.cpu_offload).__name__ == "OffloadPolicy", "not CPUOffloadPolicy"
    assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"
    assert plugin.state_dict_type.name == "FULL_STATE_DICT", "the others ask PEFT, which does not know our adapters"
    assert not plugin.cpu_ram_efficient_loading, "a run that does not train needs the whole model in every process"


@pytest.mark.parametrize("file", [f for f in LAUNCH_FILES if f.stem not in ("cpu", "single_gpu")], ids=name)
def test_number_of_processes_must_be_given(file, monkeypatch):
    with pytest.raises(ValueError, match="manually pass in `--num_processes`"):
        launcher_environment(file, monkeypatch)


@pytest.mark.parametrize("file", DEEPSPEED_FILES, ids=name)
def test_deepspeed_file(file, tmp_path):
    from deepspeed.runtime.config import DeepSpeedConfig

    written = json.loads(file.read_text())
    owned = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    assert {written[key] for key in owned} == {"auto"}
    assert written["bf16"] == written["fp16"] == {"enabled": "auto"}
    assert set(written) == {*owned, "bf16", "fp16", "zero_optimization"}, "optimizer and schedule are the run's"

    options = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 5, "max_grad_norm": 0.7, "bf16": True}
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, **options)
    config = HfTrainerDeepSpeedConfig(str(file))
    config.trainer_config_process(arguments)
    config.trainer_config_finalize(arguments, SimpleNamespace(config=GlmConfig(hidden_size=64)), 10)
    assert '"auto"' not in json.dumps(config.config)
    read = DeepSpeedConfig(config.config)
    assert (read.train_batch_size, read.train_micro_batch_size_per_gpu, read.gradient_accumulation_steps) == (15, 3, 5)
    assert (read.gradient_clipping, read.bfloat16_config.enabled, read.float16_config.enabled) == (0.7, True, False)
    assert read.zero_config.stage == int(file.stem[4])
    offload = read.zero_config.offload_optimizer, read.zero_config.offload_param
    assert [o is not None for o in offload] == ["offload" in file.stem, file.stem == "zero3_offload"]

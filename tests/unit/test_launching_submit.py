"""Job texts against recorded ones, and the scripts themselves, run with stand-ins for Slurm's programs."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from softlaunch.commands import check as check_command
from softlaunch.commands import status as status_command
from softlaunch.commands import submit as submit_command
from softlaunch.errors import ArgumentError, CheckpointError, LaunchError
from softlaunch.launching import submit
from softlaunch.launching.check import PROBLEM, WARNING, check_disk, check_gpus, check_port, require_disk
from softlaunch.launching.deepspeed_file import find_problems, owned_values, read_deepspeed_file, resolved
from softlaunch.launching.job import make_job
from softlaunch.launching.kubernetes import render_pytorchjob
from softlaunch.launching.profile import Profile, read_profile
from softlaunch.launching.settings import RunSettings
from softlaunch.launching.slurm import render_sbatch
from softlaunch.launching.status import (
    DEAD,
    FINISHED,
    PREEMPTED,
    RUNNING,
    SILENT,
    STARTING,
    newest_checkpoint,
    read_status,
)
from softlaunch.launching.strategy import Machines
from softlaunch.training import run_state

ROOT = Path(__file__).parents[2]
RECIPE, RUN_FILE = "recipes/ptuning_chatglm.py", "recipes/args/adgen_ptuning.json"
PROFILE = "launch/slurm/profile.json"

# Generated files of launch/, by the words of `softlaunch submit … --dry-run`
GENERATED = {
    "slurm/one_gpu.sbatch": [RECIPE, RUN_FILE, "--profile", PROFILE],
    "slurm/one_node.sbatch": [RECIPE, RUN_FILE, "--profile", PROFILE, "--gpus-per-node", "8"],
    "slurm/four_nodes_zero3.sbatch": [
        *("recipes/lora_chatglm.py", "recipes/args/adgen_lora.json", "--profile", PROFILE, "--nodes", "4"),
        *("--gpus-per-node", "8", "--launch-file", "launch/accelerate/zero3.yaml"),
    ],
    "slurm/learning_rates.sbatch": [RECIPE, RUN_FILE, "--profile", PROFILE, "--array", "learning_rate=1e-3,5e-3,2e-2"],
    "kubernetes/one_node.yaml": [RECIPE, RUN_FILE, "--kubernetes", "--gpus-per-node", "8"],
    "kubernetes/four_nodes.yaml": [RECIPE, RUN_FILE, "--kubernetes", "--nodes", "4", "--gpus-per-node", "8"],
}


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch):
    monkeypatch.chdir(ROOT)


def command(module, words):
    """Runs a command as `softlaunch` does."""
    from softlaunch import cli

    parser = __import__("argparse").ArgumentParser(allow_abbrev=False)
    module.add_arguments(parser)
    arguments, overrides = parser.parse_known_args(words)
    arguments.overrides = overrides
    assert cli.COMMANDS
    module.run(arguments)


def manifest_of(*words, **options):
    return yaml.safe_load(render_pytorchjob(job(*words, **options), "now"))


def job(*words, nodes=2, gpus=4, launch_file="ddp", arrays=(), run_file=RUN_FILE, **facts):
    machines = Machines(nodes, gpus)
    file = f"launch/accelerate/{launch_file}.yaml"
    return make_job(RECIPE, run_file, list(words), machines, file, Profile(**facts), list(arrays))


# Texts


@pytest.mark.parametrize("name", GENERATED)
def test_generated_file(name, capsys, monkeypatch):
    monkeypatch.setattr(submit_command, "has_slurm", lambda: False)
    monkeypatch.setattr(submit_command.time, "strftime", lambda _: "2026-01-01T00:00:00")
    command(submit_command, [*GENERATED[name], "--dry-run"])
    assert capsys.readouterr().out == (ROOT / "launch" / name).read_text(encoding="utf-8")


def test_every_file_is_generated():
    found = {
        str(f.relative_to(ROOT / "launch")) for d in ("slurm", "kubernetes") for f in (ROOT / "launch" / d).iterdir()
    }
    assert found == {*GENERATED, "slurm/profile.json"}


@pytest.mark.parametrize("name", [name for name in GENERATED if name.endswith("sbatch")])
def test_generated_script_is_shell_without_paths_of_anybody(name):
    file = ROOT / "launch" / name
    assert subprocess.run(["bash", "-n", file], check=False).returncode == 0
    text = file.read_text(encoding="utf-8")
    assert str(ROOT) not in text
    assert "/home" not in text


def test_a_script_depends_on_its_inputs_alone(monkeypatch):
    text = render_sbatch(job())
    monkeypatch.setenv("HOME", "/elsewhere")
    assert render_sbatch(job()) == text
    assert render_sbatch(job("--learning_rate", "1e-3")) != text


def test_words_are_quoted():
    text = render_sbatch(job("--source_prefix", "a b; rm -rf $HOME"))
    assert "--source_prefix 'a b; rm -rf $HOME'" in text


def test_deepspeed_nodes_start_by_themselves():
    assert "--deepspeed_multinode_launcher standard" in render_sbatch(job(launch_file="zero2"))
    assert "--deepspeed_multinode_launcher" not in render_sbatch(job(launch_file="zero2", nodes=1))


def test_kubernetes_manifest():
    manifest = manifest_of(nodes=3, launch_file="zero2", environment={"A": 'b "c"'})
    specs = manifest["spec"]["pytorchReplicaSpecs"]
    assert [specs[role]["replicas"] for role in ("Master", "Worker")] == [1, 2]
    container = specs["Worker"]["template"]["spec"]["containers"][0]
    assert "--num_machines 3 --num_processes 12" in container["args"][0]
    assert {"name": "A", "value": 'b "c"'} in container["env"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "4"}
    assert "Worker" not in manifest_of(nodes=1)["spec"]["pytorchReplicaSpecs"]
    with pytest.raises(LaunchError, match="array"):
        manifest_of(arrays=["learning_rate=1,2"])
    for place in ("/home/me/out", "../out", "/workspace"):
        with pytest.raises(LaunchError, match="goes with the pod"):
            manifest_of("--output_dir", place)
    assert manifest_of("--output_dir", "/workspace/out")


def test_an_array_of_one_task_keeps_its_option():
    option = "--learning_rate 1e-3 --output_dir "
    one = {"arrays": ["learning_rate=1e-3"], "nodes": 1}
    assert f"task_words=({option}" in render_sbatch(job(**one))
    pod = manifest_of(**one)["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]["containers"][0]
    assert option in pod["args"][0]


@pytest.mark.parametrize("launch_file", ["zero3_offload", "fsdp2"])
def test_one_process_under_a_strategy_needs_its_launcher(launch_file):
    text = render_sbatch(job(nodes=1, gpus=1, launch_file=launch_file))
    assert f"exec accelerate launch --config_file launch/accelerate/{launch_file}.yaml" in text
    assert "exec python" in render_sbatch(job(nodes=1, gpus=1, launch_file="single_gpu"))


def test_jobs_have_names_of_their_own(tmp_path, monkeypatch):
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    (tmp_path / "launch").symlink_to(ROOT / "launch")
    monkeypatch.chdir(tmp_path)
    files = ["项目 一.json", "项目 二.json", f"{'a' * 60}1.json", f"{'a' * 60}2.json"]
    for file in files:
        (tmp_path / file).write_text((ROOT / RUN_FILE).read_text())
    names = [manifest_of(run_file=file)["metadata"]["name"] for file in files]
    assert len(set(names)) == 4
    assert all(len(name) <= 50 for name in names)
    assert job(run_file=files[0]).name != job(run_file=files[1]).name


def test_an_evicted_pod_is_started_again_as_the_same_job(monkeypatch):
    """Or `restart` would begin anew with every pod."""
    pod = manifest_of()["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]
    identity = {item["name"]: item["value"] for item in pod["env"]}["SOFTLAUNCH_JOB"]
    monkeypatch.setenv("SOFTLAUNCH_JOB", identity)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    first = run_state._job()
    monkeypatch.setattr(platform, "node", lambda: "another pod")
    assert run_state._job() == first is not None


def test_a_folder_with_a_space():
    text = render_sbatch(job(log_dir="my logs"))
    assert "#SBATCH --output='my logs/%x-%j.log'" in text
    assert "mkdir -p 'my logs' && sbatch" in text


# Input


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"partitoin": "a"}', "did you mean partition"),
        ('{"cpus_per_node": "8"}', "'8' is not of the type"),
        ('{"max_requeues": -1}', "negative"),
        ('{"environment": {"HF_TOKEN": "hf_abcdefghijkl"}}', "secret"),
        ('{"environment": {"A B; rm -rf x": "1"}}', "no name of an environment variable"),
        ('{"setup": ["hf auth login --token hf_abcdefghijkl"]}', "secret"),
        ('{"setup": ["export WANDB_API_KEY=0123"]}', "secret"),
        ('{"options": ["--comment=hf_abcdefghijkl"]}', "secret"),
        ('{"gpu_request": "--gres=gpu:{gpu}"}', "no other braces"),
        ('{"modules": [1]}', "modules"),
        ("[]", "one JSON object"),
        ("{", "no valid JSON"),
    ],
)
def test_wrong_profile(content, message, tmp_path):
    (tmp_path / "profile.json").write_text(content)
    with pytest.raises(LaunchError, match=message):
        read_profile(str(tmp_path / "profile.json"))


def test_a_secret_that_the_shell_holds_may_be_named(tmp_path):
    (tmp_path / "profile.json").write_text('{"setup": ["export WANDB_API_KEY=$(cat ~/.key)", "export HF_TOKEN=$A"]}')
    assert read_profile(str(tmp_path / "profile.json")).setup


def test_all_problems_of_a_profile_at_once(tmp_path):
    (tmp_path / "profile.json").write_text('{"partitoin": "a", "qos": 1}')
    with pytest.raises(LaunchError, match=r"(?s)partitoin.*qos"):
        read_profile(str(tmp_path / "profile.json"))


@pytest.mark.parametrize(
    ("words", "options", "message"),
    [
        (["--token", "hf_abcdefghijkl"], {}, "no secret"),
        ([], {"arrays": ["hub_token=hf_abcdefghijkl,hf_abcdefghijkm"]}, "no secret"),
        ([], {"run_file": "nowhere.json"}, "no such file"),
        ([], {"run_file": "/etc/hostname"}, "lies outside|no valid JSON"),
        ([], {"arrays": ["learning_rate"]}, "option=value,value"),
        ([], {"arrays": ["learning_rate=1,1"]}, "values of its own"),
        ([], {"nodes": 0}, "at least one node"),
    ],
)
def test_what_is_refused(words, options, message):
    with pytest.raises((LaunchError, ArgumentError), match=message):
        job(*words, **options)


def test_arrays_are_crossed():
    tasks = job(arrays=["learning_rate=1e-3,1e-2", "pre_seq_len=16,32"]).tasks
    assert len({task.output_dir for task in tasks}) == 4
    assert tasks[1].words[:4] == ("--learning_rate", "1e-3", "--pre_seq_len", "32")
    assert tasks[1].output_dir.endswith("learning_rate=1e-3/pre_seq_len=32")


# The script, with stand-ins for Slurm's programs and for the run


PROGRAMS = {
    "scontrol": 'echo "$@" >>"$LOG"\n'
    'case $2 in hostnames) echo node1 ;; show) echo "NodeName=node1 NodeAddr=10.0.0.1 x=y" ;; esac',
    "squeue": 'echo "${STATE:-RUNNING}"',
    "srun": 'while [ "${1#--}" != "$1" ]; do shift; done\nexec "$@"',
    "accelerate": 'printf "%s\\n" "$*" >>"$LOG"\neval "$RUN"',
}


@pytest.fixture
def script(tmp_path):
    """Runs a job's script; returns the finished process and what was called."""
    for name, text in PROGRAMS.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "sleep").write_text("#!/bin/sh\nexit 0\n")
    (tmp_path / "sleep").chmod(0o755)
    log = tmp_path / "log"
    log.touch()
    environment = {
        **{"PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(log)},
        **{
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_JOB_ID": "7",
            "SLURM_GPUS_ON_NODE": "4",
        },
        **{"SLURMD_NODENAME": "node1"},
    }

    def run(text, run="exit 0", **more):
        env = {**environment, "RUN": run, "OUT": str(tmp_path / "out"), **more}
        done = subprocess.run(
            ["bash", "-c", text], cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=30
        )
        return done, log.read_text()

    return run


MARK = "echo {} >out/preempted; exit 1"


def in_out(**facts):
    return render_sbatch(job("--output_dir", "out", **facts))


def test_script_starts_the_run_on_the_first_node_at_the_jobs_port(script):
    done, called = script(in_out())
    assert done.returncode == 0, done.stderr
    assert "--main_process_ip 10.0.0.1 --main_process_port 20007" in called
    assert "--num_machines 2 --num_processes 8 --rdzv_backend c10d" in called
    assert "requeue" not in called


def test_array_task_has_its_own_words_and_directory(script, tmp_path):
    text = in_out(arrays=["learning_rate=1e-3,1e-2"])
    _, called = script(text, SLURM_ARRAY_TASK_ID="1")
    assert "--learning_rate 1e-2 --output_dir out/learning_rate=1e-2" in called
    assert (tmp_path / "out" / "learning_rate=1e-2").is_dir()


def test_a_failed_run_fails_the_job(script):
    done, called = script(in_out(), "exit 3")
    assert done.returncode == 3
    assert "requeue" not in called


def test_a_run_that_left_its_marker_is_requeued(script):
    done, called = script(in_out(), MARK)
    assert "requeue 7" in called
    assert "requeue 1 of at most 20" in done.stderr


def test_requeues_are_limited(script):
    done, called = script(in_out(max_requeues=3), MARK, SLURM_RESTART_COUNT="3")
    assert done.returncode == 2
    assert "requeue 7" not in called
    assert "asked to end after 3 requeues" in done.stderr


def test_a_cancelled_job_is_not_requeued(script):
    _, called = script(in_out(), MARK, STATE="CANCELLED")
    assert "requeue" not in called


def test_an_old_marker_counts_for_nothing(script, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "preempted").touch()
    done, called = script(in_out(), "exit 4")
    assert done.returncode == 4
    assert "requeue" not in called


@pytest.mark.parametrize("words", [{"SLURM_JOB_NUM_NODES": "1"}, {"SLURM_GPUS_ON_NODE": "2"}])
def test_fewer_nodes_or_gpus_than_promised(words, script):
    done, called = script(in_out(), **words)
    assert done.returncode == 2
    assert "its run needs" in done.stderr
    assert "launch" not in called


@pytest.mark.parametrize("young", [False, True], ids=["saves itself", "is too young to"])
def test_a_signal_reaches_the_run_as_term(young, script):
    """Slurm's USR1 to the script: the run hears TERM alone, and the job goes back into the queue."""
    saving = "trap 'echo heard TERM >>\"$LOG\"; echo {} >out/preempted; exit 1' TERM; "
    run = f"{'' if young else saving}kill -USR1 $SCRIPT; for i in 1 2 3 4 5 6; do /bin/sleep 0.5; done; exit 0"
    done, called = script("export SCRIPT=$$\n" + in_out(), run)
    assert "requeue 7" in called, done.stderr
    assert ("heard TERM" in called) != young


# Submission


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Stand-ins that accept everything; a program's text can be replaced."""

    def install(**programs):
        accepting = {"sbatch": 'case $1 in --parsable) echo "17;lab" ;; *) echo "to start" >&2 ;; esac', "scontrol": ""}
        for name, text in (accepting | programs).items():
            (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
            (tmp_path / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        monkeypatch.chdir(tmp_path)
        for name in ("recipes", "launch"):
            if not (tmp_path / name).exists():
                (tmp_path / name).symlink_to(ROOT / name)
        return tmp_path

    return install


def test_submission_says_where_things_will_be(slurm, capsys):
    folder = slurm()
    command(submit_command, [RECIPE, RUN_FILE, "--array", "learning_rate=1e-3,1e-2", "--output_dir", "out"])
    printed = capsys.readouterr().out
    assert "job 17" in printed
    assert "logs/ptuning-chatglm-adgen-ptuning-17_1.log, results out/learning_rate=1e-2" in printed
    assert (folder / "logs").is_dir()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--nodez", "4"], "did you mean --nodes"),
        (["--learning_rat", "3"], "did you mean --learning_rate"),
        (["--array", "learning_rat=1,2"], "did you mean --learning_rate"),
        (["--array", "learning_rate=1e-3,fast"], "fast is not of the type"),
        (["--fp16", "--bf16"], "exclude each other"),
        (["--lora_r", "8", "--tuning", "p_tuning_v2", "--prompt_init", "text"], "two methods"),
    ],
)
def test_options_are_looked_at_before_the_queue(words, message, capsys):
    with pytest.raises(ArgumentError, match=message):
        command(submit_command, [RECIPE, RUN_FILE, *words, "--dry-run"])
    assert not capsys.readouterr().out


def test_slurms_refusal_is_told(slurm):
    slurm(sbatch="echo 'sbatch: error: invalid partition: x' >&2; exit 1")
    with pytest.raises(LaunchError, match="invalid partition: x"):
        command(submit_command, [RECIPE, RUN_FILE])


def test_without_slurm(monkeypatch, tmp_path):
    monkeypatch.setattr(submit_command, "has_slurm", lambda: False)
    with pytest.raises(LaunchError, match="no Slurm on this machine"):
        command(submit_command, [RECIPE, RUN_FILE])


def test_waiting_for_a_job_that_fails(slurm):
    states = "JobId=17 JobState={} ExitCode=1:0"
    folder = slurm(scontrol=f'echo "{states.format("FAILED")}"')
    submitted = submit.submit(job())
    submitted.logs[0].write_text("".join(f"line {number}\n" for number in range(50)))
    with pytest.raises(LaunchError, match=r"(?s)ended as FAILED \(exit code 1:0\).*line 49") as caught:
        submit.wait(submitted)
    assert "line 29\n" not in str(caught.value)
    assert folder.is_dir()


def test_waiting_goes_on_through_requeues(slurm):
    folder = slurm()
    submitted = submit.submit(job())
    states = iter(["PENDING", "RUNNING", "REQUEUED", "PENDING", "RUNNING", "COMPLETED"])

    def next_state(_=None):
        text = f"JobId=17 JobState={next(states)} ExitCode=0:0"
        (folder / "scontrol").write_text(f"#!/bin/sh\necho {text}\n")

    next_state()
    submit.wait(submitted, next_state)
    assert next(states, None) is None


# check


def test_deepspeed_values_are_those_that_transformers_fills_in(tmp_path):
    from transformers import GlmConfig
    from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

    from softlaunch.arguments import TrainingArguments

    options = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 5, "max_grad_norm": 0.7, "bf16": True}
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, **options)
    owned = owned_values(RunSettings(**options), 1, 64)
    for file in (ROOT / "ds_configs").glob("*.json"):
        theirs = HfTrainerDeepSpeedConfig(str(file))
        theirs.trainer_config_process(arguments)
        theirs.trainer_config_finalize(arguments, type("M", (), {"config": GlmConfig(hidden_size=64)}), 10)
        ours = resolved(read_deepspeed_file(file), owned)
        assert "auto" not in ours.values()
        for key, value in ours.items():
            found = theirs.config
            for part in key.split("."):
                found = found[part]
            assert found == value, (file.name, key)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"train_micro_batch_size_per_gpu": "8"}, "'8'; it must be a whole number"),
        ({"train_batch_size": 17}, "17, but the run's arguments make it 16"),
        ({"bf16": {"enabled": "true"}}, "true or false"),
        ({"zero_optimization": {"stage": 4}}, "0, 1, 2 or 3"),
        ({"zero_optimization": {"stage": 3, "offload_param": {"device": "gpu"}}}, "none, cpu or nvme"),
        ({"optimizer": {"params": {"lr": 1}}}, "optimizer.params.lr is 1"),
    ],
)
def test_wrong_deepspeed_file(config, message):
    owned = owned_values(RunSettings(per_device_train_batch_size=8), 2, 64)
    problems = find_problems(config, owned)
    assert len(problems) == 1
    assert message in problems[0]


def test_disk(tmp_path):
    assert check_disk(tmp_path / "not" / "yet", 1).level == "fine"
    assert check_disk(tmp_path, 2**60).level == PROBLEM
    with pytest.raises(LaunchError, match="save_total_limit"):
        require_disk(tmp_path, 2**60)


def test_gpus(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert check_gpus(2, [80.0, 80.0]).level == "fine"
    assert check_gpus(2, [80.0]).level == PROBLEM
    assert check_gpus(2, []).level == WARNING, "a login node has none"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert check_gpus(2, [80.0, 80.0]).level == PROBLEM


def test_port():
    import socket

    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        assert check_port(taken.getsockname()[1]).level == PROBLEM
    assert "must be 0-65535" in check_port(99_999).detail


def test_check_of_the_demo(capsys, tmp_path):
    words = [
        "recipes/args/demo.json",
        "--gpus-per-node",
        "0",
        "--output_dir",
        str(tmp_path),
        "--max_train_samples",
        "9",
    ]
    command(check_command, words)
    printed = capsys.readouterr().out
    assert "train_file 9, validation_file 50, test_file 80" in printed
    assert "1 on this machine added up a number" in printed
    with pytest.raises(SystemExit) as ended:
        command(check_command, [*words, "--learning_rat", "1", "--train_file", "nowhere.json"])
    assert ended.value.code == 2
    assert "did you mean --learning_rate?" in capsys.readouterr().out


def test_check_looks_into_the_output_dir(tmp_path, monkeypatch):
    """As a recipe does: whether it can be written, and whose run is there."""
    from softlaunch.arguments import parse_arguments
    from softlaunch.training import begin

    found = check_command._check_output_dir
    words = ["recipes/args/demo.json", "--output_dir", str(tmp_path), "--restart", "false"]
    first = parse_arguments(words)
    assert [finding.level for finding in found(first)] == ["fine"]
    run_state.take_run(tmp_path, run_state.find_run(first))
    run_state.finish_run(tmp_path)
    (tmp_path / "adapter").mkdir()
    assert [finding.level for finding in found(first)] == [WARNING]
    other = parse_arguments([*words, "--pre_seq_len", "7"])
    with pytest.raises(CheckpointError, match="a run that is not this one"):
        list(found(other))
    monkeypatch.setattr(begin.tempfile, "TemporaryFile", lambda dir: (_ for _ in ()).throw(OSError(30, "read-only")))
    with pytest.raises(ArgumentError, match="cannot be written: read-only"):
        list(found(first))


def test_a_recipe_counts_what_deepspeed_saves(tmp_path, monkeypatch):
    from types import SimpleNamespace

    from softlaunch.arguments import parse_arguments
    from softlaunch.training import launch_check

    arguments = parse_arguments(["recipes/args/demo_full.json", "--output_dir", str(tmp_path)])
    needs = []
    monkeypatch.setattr(launch_check, "require_disk", lambda _, need: needs.append(need))
    for plugin in (None, SimpleNamespace(zero_stage=2)):
        arguments.training.deepspeed_plugin = plugin
        launch_check.check_launch(arguments)
    assert needs[1] / needs[0] == pytest.approx(20 / 12, rel=0.02)


def test_a_recipe_looks_at_the_cheap_part_itself(tmp_path, monkeypatch):
    from softlaunch.arguments import parse_arguments
    from softlaunch.launching import check
    from softlaunch.training.begin import begin

    arguments = parse_arguments(["recipes/args/demo.json", "--output_dir", str(tmp_path)])
    monkeypatch.setattr(check, "free_bytes", lambda _: 1000)
    with pytest.raises(LaunchError, match="save_total_limit"):
        begin(arguments)
    assert not (tmp_path / "record.json").exists()


def test_fewer_processes_than_the_job_promised(monkeypatch):
    from types import SimpleNamespace

    from softlaunch.training.processes import prepare_processes

    monkeypatch.setenv("SOFTLAUNCH_WORLD_SIZE", "16")
    with pytest.raises(LaunchError, match="submitted for 16 processes, and 1 found each other"):
        prepare_processes(SimpleNamespace(world_size=1, deepspeed_plugin=None))


# status


def write_run(directory, *, records=(), **files):
    directory.mkdir(exist_ok=True)
    training = {"do_train": True, "num_train_epochs": 2.0, "max_steps": -1}
    record = {"arguments": {"training": training}, "starts": ["a", "b"]}
    (directory / "record.json").write_text(json.dumps(record))
    lines = [json.dumps(r) for r in records]
    (directory / "metrics.jsonl").write_text("\n".join(lines) + '\n{"half": ')
    for name, content in files.items():
        (directory / name).write_text(content)
    return directory


def records(*steps, seconds=10.0, start=0.0):
    return [
        {"step": s, "time": start + seconds * n, "loss": 2.0 / s, "epoch": s / 50, "tokens_per_second": 900.0}
        for n, s in enumerate(steps, start=1)
    ]


def test_status_of_a_run_at_work(tmp_path):
    run = write_run(tmp_path / "run", records=records(10, 20, 30))
    now = (run / "metrics.jsonl").stat().st_mtime + 5
    found = read_status(run, now)
    assert (found.state, found.step, found.num_steps, found.restarts) == (RUNNING, 30, 100, 1)
    assert found.loss == pytest.approx(2 / 30)
    assert found.tokens_per_second == 900
    assert found.seconds_left == pytest.approx(70.0)
    assert read_status(run, now + 10_000).state == SILENT


def test_speed_is_that_of_the_last_start(tmp_path):
    run = write_run(tmp_path / "run", records=records(10, 20, seconds=1) + records(10, 20, 30, start=5000))
    assert read_status(run).seconds_left == pytest.approx(70.0)


def test_states(tmp_path):
    assert read_status(write_run(tmp_path / "a")).state == STARTING
    assert read_status(write_run(tmp_path / "b", preempted="{}")).state == PREEMPTED
    done = write_run(tmp_path / "c", records=records(100), **{"train_results.json": '{"train_loss": 1}'})
    assert read_status(done).state == FINISHED
    with pytest.raises(CheckpointError, match="no run has begun"):
        read_status(tmp_path / "nowhere")


def test_a_run_whose_process_is_gone_is_dead(tmp_path, capsys):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    owner = {"process": gone.pid, "host": platform.node()}
    run = write_run(tmp_path / "run", records=records(10, 20), **{".lock": json.dumps(owner)})
    (run / "logs").mkdir()
    (run / "logs" / "rank-1.log").write_text("step 20 done")
    assert (read_status(run).state, read_status(run).logs) == (DEAD, ["rank-1.log"])
    command(status_command, [str(run)])
    assert "rank-1.log" in capsys.readouterr().out
    for other in (owner | {"process": os.getpid()}, owner | {"host": "elsewhere"}):
        (run / ".lock").write_text(json.dumps(other))
        assert read_status(run).state == RUNNING


def test_a_finished_run_that_was_started_again_is_finished(tmp_path):
    run = write_run(tmp_path / "run", records=records(100), **{"run.json": '{"finished": true}'})
    assert read_status(run).state == FINISHED
    record = {"arguments": {"training": {"do_train": False, "do_predict": True}}, "starts": ["a", "b"]}
    (run / "record.json").write_text(json.dumps(record))
    assert read_status(run).state == RUNNING
    (run / "predict_results.json").write_text("{}")
    assert read_status(run).state == FINISHED


def test_newest_checkpoint_is_a_whole_one(tmp_path):
    for step in (5, 10, 20):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "x").write_text("abc")
    assert newest_checkpoint(tmp_path) is None
    for step, size in ((5, 3), (10, 3), (20, 4)):
        (tmp_path / f"checkpoint-{step}" / "manifest.json").write_text(json.dumps({"files": {"x": {"size": size}}}))
    assert newest_checkpoint(tmp_path) == "checkpoint-10"


def test_a_checkpoint_of_the_run_before_a_restart_is_none(tmp_path):
    (tmp_path / "checkpoint-5").mkdir()
    (tmp_path / "checkpoint-5" / "manifest.json").write_text('{"files": {}, "run_id": "before"}')
    for run_id, found in (("before", "checkpoint-5"), ("now", None)):
        (tmp_path / "run.json").write_text(json.dumps({"id": run_id}))
        assert newest_checkpoint(tmp_path) == found


def test_status_command(tmp_path, capsys):
    runs = [write_run(tmp_path / name, records=records(10, 20)) for name in ("a", "b")]
    command(status_command, [str(run) for run in runs])
    printed = capsys.readouterr().out
    assert printed.count("20/100") == 2
    command(status_command, [str(runs[0]), str(tmp_path / "nowhere")])
    shown = capsys.readouterr()
    assert "20/100" in shown.out
    assert "no run has begun" in shown.err.replace("\n", " ")
    with pytest.raises(CheckpointError, match="no run has begun"):
        command(status_command, [str(tmp_path / "nowhere")])
    file = tmp_path / "run.json"
    file.write_text(json.dumps({"model_name_or_path": "m", "output_dir": str(runs[0])}))
    command(status_command, [str(file), "--json"])
    assert json.loads(capsys.readouterr().out)["step"] == 20

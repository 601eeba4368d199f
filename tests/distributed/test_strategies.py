"""The recipe on two processes under every strategy computes what it computes on one. See `cases.py` for the runs."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from softlaunch.run_directory import WEIGHTS_FILE
from tests.distributed.cases import (
    CASES,
    GRADIENT_ACCUMULATION,
    METHOD_LEARNING_RATE,
    METHOD_STEPS,
    METHODS,
    MIDDLE,
    NUM_STEPS,
)
from tests.distributed.inputs import NUM_TEST_ROWS, write_rows
from tests.distributed.processes import read_notes, run_processes

pytestmark = pytest.mark.distributed

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
# Sums over other batches and over processes add the same float32 numbers in another order: 1e-7 was measured
LOSS = {"rel": 1e-5}
# Adam divides a gradient by its own size, so a weight whose gradient is next to nothing may step otherwise: 4e-5 was
# measured after steps of up to 1e-1
WEIGHTS = {"rtol": 0, "atol": 1e-3}


@dataclass
class Launch:
    """What one launch left: `directory` with the cases' run directories, the processes' notes and all output."""

    strategy: str
    directory: Path
    output: str

    def records(self, case, key):
        lines = (self.directory / case / "metrics.jsonl").read_text().splitlines()
        return [record[key] for record in map(json.loads, lines) if key in record]

    def answers(self, case):
        lines = (self.directory / case / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
        return [(record["row_id"], record["predict"]) for record in map(json.loads, lines)]

    def table(self, adapter):
        return load_file(self.directory / adapter / "adapter_model.safetensors")["prefix_encoder.embedding.weight"]

    def processes(self):
        return read_notes(self.directory)


def launch(strategy, num_processes, directory, *cases):
    write_rows(directory)
    flags = ["--config_file", f"launch/accelerate/{strategy}.yaml", "--num_processes", str(num_processes)]
    command = ["accelerate", "launch", "--main_process_port", "0", *flags]
    output = run_processes([*command, str(HERE / "cases.py"), str(directory), *cases], directory, num_processes)
    return Launch(strategy, directory, output)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return launch("cpu", 1, tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module", params=["ddp", "zero1", "zero2", "zero3"])
def together(request, tmp_path_factory):
    return launch(request.param, 2, tmp_path_factory.mktemp(request.param))


def test_two_processes_share_each_step(together):
    first, second = together.processes()
    assert set(first["world_size"]) == set(second["world_size"]) == {2}
    differ = [a != b for a, b in zip(first["lengths"], second["lengths"], strict=True)]
    assert any(differ), "batches of one length hide a loss that weighs processes instead of tokens"


def test_weights_are_split_under_zero3_alone(together):
    for process in together.processes():
        counts = list(zip(process["num_partitioned"], process["num_parameters"], strict=True))
        if together.strategy != "zero3":
            assert not any(split for split, _ in counts)
            continue
        num_all_split = GRADIENT_ACCUMULATION * NUM_STEPS  # the case `train`
        assert all(split == every for split, every in counts[:num_all_split])
        assert all(0 < split <= every for split, every in counts[num_all_split:])


def test_training(alone, together):
    losses = together.records("train", "loss")
    assert len(losses) == NUM_STEPS
    assert losses == pytest.approx(alone.records("train", "loss"), **LOSS)
    assert together.records("train", "grad_norm") == pytest.approx(alone.records("train", "grad_norm"), rel=1e-4)
    assert together.records("train", "eval_loss") == pytest.approx(alone.records("train", "eval_loss"), **LOSS)
    assert together.records("train", "eval_rouge-l") == alone.records("train", "eval_rouge-l")
    torch.testing.assert_close(
        together.table(f"train/checkpoint-{NUM_STEPS}"), alone.table(f"train/checkpoint-{NUM_STEPS}"), **WEIGHTS
    )


def test_best_checkpoint_is_loaded_at_the_end(together):
    best = together.table(f"train/checkpoint-{MIDDLE}")
    assert torch.equal(together.table("train/adapter"), best)
    assert not torch.equal(together.table(f"train/checkpoint-{NUM_STEPS}"), best)


def test_resumed_lora_ends_as_the_uninterrupted_one(together):
    assert together.records("lora_resumed", "loss") == pytest.approx(together.records("lora", "loss")[1:], **LOSS)
    ours, whole = (load_file(together.directory / run / "adapter" / WEIGHTS_FILE) for run in ("lora_resumed", "lora"))
    for name in whole:
        torch.testing.assert_close(ours[name], whole[name], **WEIGHTS)


def test_resumed_training_ends_as_the_uninterrupted_one(together):
    assert together.records("resume", "loss") == pytest.approx(together.records("train", "loss")[MIDDLE:], **LOSS)
    whole = together.table(f"train/checkpoint-{NUM_STEPS}")
    torch.testing.assert_close(together.table("resume/adapter"), whole, **WEIGHTS)


@pytest.mark.parametrize("case", ["train", "resume", "predict", "predict/base"])
def test_one_answer_per_row_equal_to_those_of_one_process(case, alone, together):
    answers = together.answers(case)
    assert [row for row, _ in answers] == list(range(NUM_TEST_ROWS))
    assert answers == alone.answers(case)
    assert len(set(answers)) > 1


@pytest.mark.parametrize("case", ["train", "text"])
def test_probes_are_answered_as_by_one_process(case, alone, together):
    files = [launch.directory / case / "probes.jsonl" for launch in (alone, together)]
    whole, shared = ([json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] for file in files)
    assert [record["row_id"] for record in shared] == [0, 1, 2] * 2
    assert shared == whole
    assert shared[:3] != shared[3:]


def test_predicting_alone_answers_as_after_training(together):
    assert together.answers("predict") == together.answers("train") != together.answers("predict/base")
    assert together.records("predict", "eval_loss") == pytest.approx(together.records("train", "eval_loss")[-1:])


def test_prefix_from_text(alone, together):
    assert together.records("text", "loss") == pytest.approx(alone.records("text", "loss"), **LOSS)


def test_bf16_with_projection(alone, together):
    """bfloat16 has 8 bits: rounding to it in other places moves the loss by up to 1/256."""
    assert together.records("bf16", "loss") == pytest.approx(alone.records("bf16", "loss"), rel=2**-8)
    for tensor in load_file(together.directory / "bf16" / "adapter" / "adapter_model.safetensors").values():
        assert tensor.dtype == torch.float32
        assert not torch.equal(tensor, tensor.bfloat16().float()), "rounded to bfloat16 before it was saved"


def test_quantized_base_and_beams(alone, together):
    assert together.records("4bit", "loss") == pytest.approx(alone.records("4bit", "loss"), **LOSS)
    assert together.answers("4bit") == alone.answers("4bit")


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("full_bf16", "lora_resumed")])
def test_every_method_trains_and_answers_as_on_one_process(method, alone, together):
    losses = together.records(method, "loss")
    assert len(losses) == METHOD_STEPS
    assert losses == pytest.approx(alone.records(method, "loss"), **LOSS)
    assert together.records(method, "eval_loss") == pytest.approx(alone.records(method, "eval_loss"), **LOSS)
    assert together.answers(method) == alone.answers(method)
    files = sorted(path.relative_to(alone.directory) for path in (alone.directory / method).rglob("*.safetensors"))
    assert len(files) == {"both": 4, "lora": 3}.get(method, 2)  # of checkpoints and of the result
    for file in files:
        ours, theirs = load_file(together.directory / file), load_file(alone.directory / file)
        assert set(ours) == set(theirs)
        for name in ours:
            if name.endswith("k_proj.bias"):  # moves all scores of a query alike: its gradient is rounding
                continue
            torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=METHOD_LEARNING_RATE / 10, msg=name)


def test_full_in_half_precision_has_float32_master_weights(alone, together):
    """DeepSpeed computes all of it in bfloat16, autocast leaves norms and sums in float32."""
    assert together.records("full_bf16", "loss") == pytest.approx(alone.records("full_bf16", "loss"), rel=2**-6)
    directory = together.directory / "full_bf16"
    for tensor in load_file(directory / f"checkpoint-{METHOD_STEPS}" / "model.safetensors").values():
        assert tensor.dtype == torch.float32
        assert not torch.equal(tensor, tensor.bfloat16().float()), "rounded to bfloat16 before it was saved"
    written = load_file(directory / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {torch.bfloat16}
    assert "transformer.encoder.layers.0.self_attention.query_key_value.weight" in written


@pytest.mark.slow  # DeepSpeed's Adam for the CPU is compiled at its first use
@pytest.mark.parametrize("strategy", ["zero2_offload", "zero3_offload"])
def test_full_fine_tuning_with_offload(strategy, alone, tmp_path):
    offloaded = launch(strategy, 2, tmp_path, "full")
    assert offloaded.records("full", "loss") == pytest.approx(alone.records("full", "loss"), **LOSS)
    assert offloaded.answers("full") == alone.answers("full")
    ours, theirs = (load_file(run.directory / "full" / "model" / "model.safetensors") for run in (offloaded, alone))
    for name in theirs.keys() - {name for name in theirs if name.endswith("k_proj.bias")}:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=METHOD_LEARNING_RATE / 10, msg=name)


def test_only_the_first_process_speaks_and_nothing_is_left_behind(together):
    num_steps = NUM_STEPS + (NUM_STEPS - MIDDLE) + 1 + 2 + 2  # of train, resume, text, bf16 and 4bit
    num_steps += METHOD_STEPS * len(METHODS) - 1  # lora_resumed has made its first one elsewhere
    assert together.output.count(" tokens/s  learning rate ") == num_steps
    assert together.output.count("predict_results.json: ") == len(CASES)
    assert together.output.count("prompts in the style of") == len(CASES)
    assert "destroy_process_group() was not called" not in together.output
    assert not list(together.directory.rglob("predictions.rank-*"))

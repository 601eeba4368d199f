"""What CausalTrainer computes, on two-layer models in one process."""

import json
import time

import datasets
import pytest
import torch
from transformers import TrainerCallback

from softlaunch.arguments import TrainingArguments
from softlaunch.training.trainer import CausalTrainer
from softlaunch.tuning import add_prefix
from tests.bases import random_base

LENGTHS = [(4, 7), (9, 3), (6, 12), (2, 2), (11, 5), (3, 9), (7, 7), (5, 1)]


def rows():
    """Rows of random tokens: prompt and answer lengths as above, labels on the answers."""
    generator = torch.Generator().manual_seed(0)
    draw = [torch.randint(3, 96, (p + a,), generator=generator).tolist() for p, a in LENGTHS]
    labels = [[-100] * p + ids[p:] for (p, _), ids in zip(LENGTHS, draw, strict=True)]
    return datasets.Dataset.from_dict({"row_id": list(range(len(draw))), "input_ids": draw, "labels": labels})


def trainer(tmp_path, model=None, callbacks=(), **kwargs):
    torch.manual_seed(0)
    options = {"max_steps": 4, "learning_rate": 1e-2, "logging_steps": 1, "save_strategy": "no", "disable_tqdm": True}
    return CausalTrainer(
        model=model or add_prefix(random_base("glm"), num_virtual_tokens=4, dropout=0.0),
        args=TrainingArguments(output_dir=str(tmp_path), report_to="none", **{**options, **kwargs}),
        train_dataset=rows(),
        eval_dataset=rows(),
        pad_token_id=0,
        callbacks=list(callbacks),
    )


def losses(run):
    return [record["loss"] for record in run.state.log_history if "loss" in record]


def token_mean_loss(model):
    """The mean over all label tokens, row by row and without padding: what every batching must give."""
    total = num_tokens = 0
    with torch.no_grad():
        for row in rows():
            ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
            count = (labels[:, 1:] != -100).sum().item()
            total += model.eval()(input_ids=ids, labels=labels).loss.item() * count
            num_tokens += count
    return total / num_tokens


def test_loss_is_the_mean_over_label_tokens(tmp_path):
    run = trainer(tmp_path, per_device_train_batch_size=8)
    expected = token_mean_loss(run.model)
    run.train()
    assert losses(run)[0] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("batch_size", "accumulation"), [(1, 8), (2, 4), (4, 2)])
def test_split_of_an_update_does_not_matter(batch_size, accumulation, tmp_path):
    whole = trainer(tmp_path, per_device_train_batch_size=8)
    whole.train()
    split = trainer(tmp_path, per_device_train_batch_size=batch_size, gradient_accumulation_steps=accumulation)
    split.train()
    assert losses(split) == pytest.approx(losses(whole), abs=1e-4)
    assert losses(whole)[-1] < losses(whole)[0]
    tables = (run.model.encoder().embedding.weight for run in (whole, split))
    torch.testing.assert_close(*tables, atol=1e-4, rtol=0)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_eval_loss_is_the_same_mean(batch_size, tmp_path):
    run = trainer(tmp_path, per_device_eval_batch_size=batch_size)
    assert run.evaluate()["eval_loss"] == pytest.approx(token_mean_loss(run.model), abs=1e-5)


def test_half_precision_keeps_the_prefix_in_float32(tmp_path):
    base = random_base("glm").to(torch.bfloat16)
    run = trainer(tmp_path, add_prefix(base, num_virtual_tokens=4, dropout=0.0), bf16=True, max_steps=2)
    optimizer_states = []

    class Watch(TrainerCallback):
        def on_step_end(self, *_, optimizer, **__):
            optimizer_states.extend(s["exp_avg"].dtype for s in optimizer.state.values())

    run.add_callback(Watch())
    run.train()
    assert run.model.encoder().embedding.weight.dtype == torch.float32
    assert set(optimizer_states) == {torch.float32}
    assert base.lm_head.weight.dtype == torch.bfloat16
    exact = trainer(tmp_path, max_steps=2)
    exact.train()
    assert losses(run) == pytest.approx(losses(exact), rel=0.02)


def test_a_checkpoint_holds_the_adapter_and_resumes_bit_for_bit(tmp_path):
    whole = trainer(tmp_path / "whole", max_steps=6, per_device_train_batch_size=2)
    whole.train()
    first = trainer(tmp_path / "run", max_steps=6, per_device_train_batch_size=2, save_strategy="steps", save_steps=3)

    class Stop(TrainerCallback):
        def on_save(self, args, state, control, **_):
            control.should_training_stop = True

    first.add_callback(Stop())
    first.train()
    checkpoint = tmp_path / "run" / "checkpoint-3"
    assert {p.name for p in checkpoint.iterdir()} == {
        *("adapter_config.json", "adapter_model.safetensors", "optimizer.pt", "scheduler.pt"),
        *("rng_state.pth", "trainer_state.json", "manifest.json"),
    }
    second = trainer(tmp_path / "run", max_steps=6, per_device_train_batch_size=2)
    second.train(resume_from_checkpoint=str(checkpoint))
    assert torch.equal(second.model.encoder().embedding.weight, whole.model.encoder().embedding.weight)
    assert losses(second)[-3:] == losses(whole)[-3:]


def test_metrics_file_holds_each_step_once(tmp_path):
    file = tmp_path / "metrics.jsonl"
    steps = lambda: [json.loads(line)["step"] for line in file.read_text().splitlines()]  # noqa: E731
    trainer(tmp_path, do_train=True, save_strategy="steps", save_steps=2).train()
    assert steps() == [1, 2, 3, 4, 4]  # and the summary
    with file.open("a") as cut_off:
        cut_off.write('{"step": 4, "lo')
    trainer(tmp_path, do_train=True).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert steps() == [1, 2, 3, 4, 4]
    run = trainer(tmp_path, do_train=True, restart=True, max_steps=1)
    run.train()
    assert steps() == [1, 1]
    run.evaluate()
    assert steps() == [1, 1, 1]
    assert all(json.loads(line)["tokens_per_second"] > 0 for line in file.read_text().splitlines() if '"loss"' in line)


def test_speed_counts_real_tokens_and_training_alone(tmp_path):
    class Slow(TrainerCallback):
        def on_evaluate(self, *_, **__):
            time.sleep(0.3)

    run = trainer(tmp_path, per_device_train_batch_size=8, eval_strategy="steps", eval_steps=1)
    run.callback_handler.callbacks.insert(0, Slow())
    run.train()
    totals = run.throughput
    assert totals.total_tokens == 4 * sum(prompt + answer for prompt, answer in LENGTHS)
    assert totals.totals()["train_tokens_per_second"] == totals.total_tokens / totals.total_time_s
    assert totals.total_time_s < run.state.log_history[-1]["train_runtime"] - 4 * 0.3

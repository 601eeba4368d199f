"""Training that has gone wrong stops before the optimizer's step, names the cause that was found, and the rows."""

import re

import pytest
import torch
from torch import nn
from transformers import TrainerCallback

from softlaunch.data.encode import IGNORED_LABEL
from softlaunch.training.guard import MAX_SKIPPED_STEPS, Guard, TrainingError
from softlaunch.tuning import add_prefix
from tests.bases import random_base
from tests.unit.test_trainer import rows, trainer

ALL_ROWS = {str(row) for row in range(8)}


def tuned(base=None):
    return add_prefix(base or random_base("glm"), num_virtual_tokens=4, dropout=0.0)


def error_of(run) -> str:
    with pytest.raises(TrainingError) as caught:
        run.train()
    return str(caught.value)


def rows_in(message: str) -> set[str]:
    found = re.search(r"rows (\d+(?:, \d+)*)", message)
    assert found, message
    return set(found.group(1).split(", "))


def test_a_damaged_adapter_is_found_before_the_first_step(tmp_path):
    run = trainer(tmp_path, per_device_train_batch_size=2)
    table = run.model.encoder().embedding.weight
    with torch.no_grad():
        table[0, 0] = float("nan")
    before = table.clone()
    message = error_of(run)
    assert "loss of step 1 is nan" in message
    assert "prefix_encoder.default.embedding.weight is not finite before the first step" in message
    assert len(rows_in(message)) == 2
    torch.testing.assert_close(table, before, equal_nan=True, atol=0, rtol=0)


def test_a_damaged_base_is_found(tmp_path):
    model = tuned()
    with torch.no_grad():
        model.base_model.model.layers[1].mlp.down_proj.weight[0, 0] = float("inf")
    message = error_of(trainer(tmp_path, model))
    assert "the base model's" in message
    assert "layers.1.mlp.down_proj.weight is not finite" in message


@pytest.mark.parametrize(
    ("learning_rate", "says"),
    [(1e39, "loss of step 2 is nan"), (1e20, "gradients have been exactly 0 for 3 steps")],
)
def test_a_learning_rate_that_is_too_high_is_named(learning_rate, says, tmp_path):
    run = trainer(tmp_path, learning_rate=learning_rate, lr_scheduler_type="constant", max_steps=20)
    message = error_of(run)
    assert says in message
    assert re.search(rf"learning_rate {re.escape(f'{learning_rate:g}')} is (too|so) high", message)
    assert run.state.global_step < 4


def test_float16_that_overflows_is_named(tmp_path):
    base = random_base("glm")
    with torch.no_grad():
        base.model.layers[0].mlp.down_proj.weight.mul_(3e4)
    message = error_of(trainer(tmp_path, tuned(base.half())))
    assert "computes in float16, which ends at 65504" in message


def test_rows_whose_labels_are_all_masked_are_named(tmp_path):
    masked = rows().map(lambda row: {"labels": [IGNORED_LABEL] * len(row["labels"])})
    run = trainer(tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    run.train_dataset = masked
    message = error_of(run)
    assert "no row of this step has a token to learn from" in message
    assert rows_in(message) < ALL_ROWS


def test_only_the_row_that_has_no_finite_loss_is_named(tmp_path):
    model = tuned()

    def spoil(head: nn.Module, args: tuple, logits: torch.Tensor) -> torch.Tensor:
        return torch.cat([logits[:1] * float("nan"), logits[1:]])  # the first label token of the first row

    model.base_model.lm_head.register_forward_hook(spoil)
    message = error_of(trainer(tmp_path, model, per_device_train_batch_size=8))
    assert len(rows_in(message)) == 1
    assert "All weights are finite" in message


def test_loss_that_stays_0_stops_after_three_steps(tmp_path):
    model = tuned()
    same = rows().map(lambda row: {"labels": [5 if label != IGNORED_LABEL else label for label in row["labels"]]})
    sure = 1000 * nn.functional.one_hot(torch.tensor(5), 96)
    model.base_model.lm_head.register_forward_hook(lambda head, args, logits: logits + sure)
    run = trainer(tmp_path, model, max_steps=20, per_device_train_batch_size=2)
    run.train_dataset = same
    message = error_of(run)
    assert "the loss has been exactly 0 for 3 steps" in message
    assert len(rows_in(message)) == 2
    assert run.state.global_step == 2


def test_gradients_that_stay_0_stop_after_three_steps(tmp_path):
    model = tuned()
    model.base_model.lm_head.register_forward_hook(lambda head, args, logits: logits * 0)
    run = trainer(tmp_path, model, max_steps=20)
    assert "all gradients have been exactly 0 for 3 steps" in error_of(run)
    assert run.state.global_step == 2


def test_a_gradient_that_is_not_finite_stops_before_the_step(tmp_path):
    class Spoil(TrainerCallback):
        def on_pre_optimizer_step(self, *_, model, **__):
            model.encoder().embedding.weight.grad[0, 0] = float("inf")

    run = trainer(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    run.callback_handler.callbacks.insert(0, Spoil())
    before = run.model.encoder().embedding.weight.clone()
    message = error_of(run)
    assert "gradient of step 1 is not finite although the loss is" in message
    assert "It is that of prefix_encoder.default.embedding.weight" in message
    assert len(rows_in(message)) == 4
    assert torch.equal(run.model.encoder().embedding.weight, before)


def test_fp16_may_skip_some_steps_in_a_row(tmp_path):
    guard, model = Guard(trainer(tmp_path).args), tuned()
    guard.args.fp16 = True
    state = type("State", (), {"global_step": 7})
    parameter = model.encoder().embedding.weight
    for _ in range(2):
        parameter.grad = torch.full_like(parameter, float("inf"))
        for _ in range(MAX_SKIPPED_STEPS - 1):
            guard.on_pre_optimizer_step(guard.args, state, None, model=model)
        parameter.grad = torch.ones_like(parameter)
        guard.on_pre_optimizer_step(guard.args, state, None, model=model)
    parameter.grad = torch.full_like(parameter, float("inf"))
    for _ in range(MAX_SKIPPED_STEPS - 1):
        guard.on_pre_optimizer_step(guard.args, state, None, model=model)
    with pytest.raises(TrainingError, match=f"for the {MAX_SKIPPED_STEPS}th time in a row.*float16"):
        guard.on_pre_optimizer_step(guard.args, state, None, model=model)

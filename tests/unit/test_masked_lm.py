"""The loss of masked language modelling is transformers' own, from logits at the masked positions alone."""

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, TrainingArguments

from softlaunch.training.masked_lm import MaskedLanguageTrainer, begin_with_frequencies


@pytest.fixture
def model():
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return BertForMaskedLM(BertConfig(vocab_size=50, max_position_embeddings=12, **shape)).eval()


def batch(num_rows=4, length=10):
    ids = torch.randint(5, 50, (num_rows, length))
    labels = torch.where(torch.rand(ids.shape) < 0.3, ids, -100)
    labels[0] = -100  # a row without a masked token
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": labels.where(mask.bool(), -100)}


def test_loss_and_gradient_are_those_of_the_model(model, tmp_path):
    inputs = batch()
    expected = model(**inputs).loss
    expected.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    trainer = MaskedLanguageTrainer(model=model, args=TrainingArguments(str(tmp_path), use_cpu=True, report_to="none"))
    loss, outputs = trainer.compute_loss(model, inputs, return_outputs=True)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    assert outputs["nll"].ndim == 0
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.grad, gradients[name], atol=1e-6), name


def test_loss_is_divided_by_all_masked_tokens_of_an_update(model, tmp_path):
    parts = [batch(), batch()]
    trainer = MaskedLanguageTrainer(model=model, args=TrainingArguments(str(tmp_path), use_cpu=True, report_to="none"))
    number = sum((part["labels"] != -100).sum() for part in parts)
    halves = sum(trainer.compute_loss(model, part, num_items_in_batch=number) for part in parts)
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    assert halves.item() == pytest.approx(model(**whole).loss.item(), abs=1e-6)


def test_a_batch_without_masked_tokens_has_loss_0(model, tmp_path):
    inputs = batch()
    inputs["labels"][:] = -100
    trainer = MaskedLanguageTrainer(model=model, args=TrainingArguments(str(tmp_path), use_cpu=True, report_to="none"))
    assert trainer.compute_loss(model, inputs).item() == 0.0


def test_a_new_model_begins_with_the_tokens_frequencies(model):
    rows = [[7, 7, 7, 8], [8, 9]]
    begin_with_frequencies(model, rows)
    shares = model.cls.predictions.bias.exp()
    assert shares.sum().item() == pytest.approx(1.0, abs=1e-5)
    assert shares[[7, 8, 9, 10]].tolist() == pytest.approx([n / (6 + 25) for n in (3.5, 2.5, 1.5, 0.5)], rel=1e-5)

"""Probe prompts: answered before training and after it, without a trace in the training itself."""

import json
from pathlib import Path

import pytest
import torch

from softlaunch.arguments import parse_arguments
from softlaunch.data.dataset import load_rows
from softlaunch.evaluation import probes as module
from softlaunch.evaluation.predict import GenerationOptions, generate_answers
from softlaunch.evaluation.probes import Probes, probe_rows
from softlaunch.models import load_base, load_base_tokenizer
from softlaunch.training.trainer import CausalTrainer
from softlaunch.tuning import add_prefix

DEMO = Path(__file__).parents[2] / "recipes" / "demo"
FILES = {"train_file": "train.json", "validation_file": "validation.json", "test_file": "test.json"}
OPTIONS = {
    "model_name_or_path": DEMO / "base",
    "prompt_column": "content",
    "response_column": "summary",
    "max_source_length": 96,
    "max_target_length": 8,
    "max_train_samples": 24,
    "max_eval_samples": 4,
    "max_predict_samples": 4,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 2,
    "do_train": True,
    "learning_rate": 0.1,
    "max_steps": 4,
    "save_steps": 2,
}


def parse(output_dir, *files, **options):
    given = OPTIONS | {name: DEMO / FILES[name] for name in ("train_file", *files)} | options
    flags = [word for name, value in {**given, "output_dir": output_dir}.items() for word in (f"--{name}", str(value))]
    return parse_arguments(flags)


def trained(arguments, *, with_probes=True, checkpoint=None):
    base, tokenizer = load_base(arguments), load_base_tokenizer(arguments)
    torch.manual_seed(0)
    model, rows = add_prefix(base, num_virtual_tokens=4), load_rows(arguments, tokenizer)
    trainer = CausalTrainer(
        model=model,
        args=arguments.training,
        train_dataset=rows.train,
        pad_token_id=tokenizer.pad_token_id,
        callbacks=[Probes(rows, tokenizer, arguments)] if with_probes else [],
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    return model, tokenizer, rows


def records(directory):
    return [json.loads(line) for line in (directory / "probes.jsonl").read_text(encoding="utf-8").splitlines()]


def test_answers_before_and_after_are_the_models_own_and_training_does_not_notice(tmp_path, capsys):
    arguments = parse(tmp_path / "with", "test_file", do_predict=True)
    model, tokenizer, rows = trained(arguments)
    found = records(tmp_path / "with")
    assert [(r["step"], r["row_id"]) for r in found] == [(step, row) for step in (0, 4) for row in (0, 1, 2)]
    assert [r["prompt"] for r in found[:3]] == rows.test["prompt"][:3]
    assert [r["labels"] for r in found[:3]] == rows.test["reference"][:3]
    own = generate_answers(model, tokenizer, rows.test.select(range(3)), GenerationOptions(8), batch_size=1)
    assert {r["row_id"]: r["predict"] for r in own} == {r["row_id"]: r["predict"] for r in found[3:]}
    assert [r["predict"] for r in found[:3]] != [r["predict"] for r in found[3:]]
    assert "Before training and after 4 steps" in capsys.readouterr().out
    without, _, _ = trained(parse(tmp_path / "without", "test_file", do_predict=True), with_probes=False)
    assert torch.equal(model.encoder().embedding.weight, without.encoder().embedding.weight)


def test_a_resumed_run_keeps_the_first_answers(tmp_path, monkeypatch):
    arguments = parse(tmp_path, probe_prompts="你好")
    trained(arguments)
    first = records(tmp_path)
    assert [(r["step"], r["prompt"]) for r in first] == [(0, "你好"), (4, "你好")]
    kept = [{**first[0], "predict": "as the file has it"}, first[1]]
    (tmp_path / "probes.jsonl").write_text("".join(json.dumps(r) + "\n" for r in kept), encoding="utf-8")
    calls, generate = [], module.generate_answers
    monkeypatch.setattr(module, "generate_answers", lambda *a, **k: calls.append(1) or generate(*a, **k))
    trained(arguments, checkpoint=str(tmp_path / "checkpoint-2"))
    assert records(tmp_path) == kept
    assert calls == [1]


@pytest.mark.parametrize(
    ("files", "options", "expected"),
    [
        (
            ["validation_file", "test_file"],
            {"do_eval": True, "predict_with_generate": True, "do_predict": True},
            "validation",
        ),
        (["test_file"], {"do_predict": True}, "test"),
        (["validation_file"], {"do_eval": True}, "validation"),
        ([], {}, "train"),
    ],
)
def test_held_out_rows_come_first(files, options, expected, tmp_path):
    arguments = parse(tmp_path, *files, **options)
    tokenizer = load_base_tokenizer(arguments)
    found = probe_rows(load_rows(arguments, tokenizer), tokenizer, arguments)
    lines = (DEMO / f"{expected}.json").read_text(encoding="utf-8").splitlines()[:3]
    for row, line in zip(found, map(json.loads, lines), strict=True):
        assert line["content"] in row["prompt"]
        assert row["reference"].startswith(line["summary"][:4])
        assert line["summary"][:4] not in tokenizer.decode(row["input_ids"])


def test_none_on_request_and_none_without_training(tmp_path):
    arguments = parse(tmp_path)
    tokenizer = load_base_tokenizer(arguments)
    rows = load_rows(arguments, tokenizer)
    object.__setattr__(arguments.data, "probe_prompts", [])
    assert Probes(rows, tokenizer, arguments).rows is None
    arguments = parse(tmp_path, "test_file", do_train=False, do_predict=True)
    assert Probes(load_rows(arguments, tokenizer), tokenizer, arguments).rows is None

"""Answers on disk: one per row, equal to those made one by one, and never made twice."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import pytest
import torch

from softlaunch.evaluation import predict as module
from softlaunch.evaluation.predict import GenerationOptions, generate_answers, predict, write_original_format
from softlaunch.evaluation.scores import answer_scores
from softlaunch.models import load_tokenizer
from softlaunch.tuning import add_prefix, digest
from tests.bases import _SHAPE, random_base
from tests.tokenizer_files import write_released_chatglm
from tests.unit import killed_prediction

ROOT = Path(__file__).parents[2]

OPTIONS = GenerationOptions(max_new_tokens=6)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(write_released_chatglm(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture
def model(tokenizer, monkeypatch):
    monkeypatch.setitem(_SHAPE, "vocab_size", len(tokenizer))
    torch.manual_seed(0)
    return add_prefix(random_base("glm"), num_virtual_tokens=4)


@pytest.fixture(scope="module")
def rows(tokenizer):
    texts = ["你好", "请问今天天气怎么样", "推荐 上衣", "谢谢", "风格 简约 线条", "再见", "图案"]
    ids = [tokenizer(text)["input_ids"] for text in texts]
    row_ids = [10 * i for i in range(len(texts))]
    return datasets.Dataset.from_dict({"input_ids": ids, "reference": texts, "row_id": row_ids})


def run(model, tokenizer, rows, directory, options=OPTIONS, **kwargs):
    settings = options.settings(digest(model), rows)
    return predict(model, tokenizer, rows, options, directory=directory, settings=settings, batch_size=3, **kwargs)


def test_one_answer_per_row_equal_to_those_made_one_by_one(model, tokenizer, rows, tmp_path):
    records = run(model, tokenizer, rows, tmp_path)
    assert [record["row_id"] for record in records] == rows["row_id"][:]
    assert [record["labels"] for record in records] == rows["reference"][:]
    one_by_one = list(generate_answers(model, tokenizer, rows, OPTIONS, batch_size=1))
    assert {r["row_id"]: r["predict"] for r in one_by_one} == {r["row_id"]: r["predict"] for r in records}
    assert len({r["predict"] for r in records}) > 1
    lines = (tmp_path / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == records


def test_length_is_counted_in_new_tokens_and_generation_settings_of_the_base_are_ignored(model, tokenizer, rows):
    greedy = list(generate_answers(model, tokenizer, rows, OPTIONS, batch_size=7))
    kept = model.base_model.generation_config
    kept.update(repetition_penalty=50.0, max_new_tokens=2, do_sample=True)
    assert list(generate_answers(model, tokenizer, rows, OPTIONS, batch_size=7)) == greedy
    assert model.base_model.generation_config is kept
    inputs = torch.tensor([rows["input_ids"][0]])
    model.eval()
    step_by_step = inputs
    for _ in range(OPTIONS.max_new_tokens):
        step_by_step = torch.cat([step_by_step, model(step_by_step).logits[:, -1:].argmax(-1)], dim=1)
    expected = tokenizer.decode(step_by_step[0, inputs.shape[1] :], skip_special_tokens=True).strip()
    assert next(r["predict"] for r in greedy if r["row_id"] == 0) == expected


@pytest.mark.parametrize("num_processes", [2, 3])
def test_several_processes_leave_one_file(num_processes, model, tokenizer, rows, tmp_path):
    alone = run(model, tokenizer, rows, tmp_path / "alone")
    for process in reversed(range(num_processes)):  # here one after the other, the merging one last
        share = {"process_index": process, "num_processes": num_processes}
        settings = OPTIONS.settings(digest(model), rows)
        if process:
            part = list(generate_answers(model, tokenizer, rows, OPTIONS, batch_size=3, **share))
            file = module._part(tmp_path / "together", process)
            file.parent.mkdir(exist_ok=True)
            file.write_text("".join(json.dumps({**r, "settings": settings}) + "\n" for r in part))
    assert run(model, tokenizer, rows, tmp_path / "together") == alone
    assert [p.name for p in (tmp_path / "together").iterdir()] == ["predictions.jsonl"]


def test_a_killed_run_goes_on_where_it_stopped(model, tokenizer, rows, tmp_path, monkeypatch):
    whole = run(model, tokenizer, rows, tmp_path / "whole")
    run(model, tokenizer, rows, tmp_path / "killed")
    file = tmp_path / "killed" / "predictions.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    whole_lines = "".join(lines[:4]).encode()
    file.write_bytes(whole_lines + lines[4].encode()[: lines[4].encode().index(b"labels") + 11])  # within a character
    answered = []
    generate = module.generate_answers

    def watched(model, tokenizer, rows, *args, **kwargs):
        answered.extend(rows["row_id"][:])
        return generate(model, tokenizer, rows, *args, **kwargs)

    monkeypatch.setattr(module, "generate_answers", watched)
    assert run(model, tokenizer, rows, tmp_path / "killed") == whole
    assert answered == [40, 50, 60]
    assert run(model, tokenizer, rows, tmp_path / "killed") == whole
    assert answered == [40, 50, 60]


def test_a_prediction_killed_by_sigkill_loses_no_row_and_makes_none_twice(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setitem(_SHAPE, "vocab_size", len(tokenizer))
    killed, file = tmp_path / "killed", tmp_path / "killed" / "predictions.jsonl"
    place = write_released_chatglm(tmp_path / "tokenizer")
    command = [sys.executable, "-m", "tests.unit.killed_prediction", str(place), str(killed)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and (not file.exists() or file.read_bytes().count(b"\n") < 9):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it had ended before it was killed"
    done = [json.loads(line) for line in file.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    assert 9 <= len(done) < killed_prediction.NUM_ROWS

    model, answered, generate = killed_prediction.model_for(tokenizer), [], module.generate_answers

    def watched(model, tokenizer, rows, *args, **kwargs):
        answered.extend(rows["row_id"][:])
        return generate(model, tokenizer, rows, *args, **kwargs)

    whole = killed_prediction.run(model, tokenizer, tmp_path / "whole")
    monkeypatch.setattr(module, "generate_answers", watched)
    assert killed_prediction.run(model, tokenizer, killed) == whole
    assert sorted(answered + [record["row_id"] for record in done]) == list(range(killed_prediction.NUM_ROWS))
    assert [record for record in whole if record["row_id"] in {r["row_id"] for r in done}] == sorted(
        done, key=lambda record: record["row_id"]
    )


def test_answers_of_other_settings_are_not_taken(model, tokenizer, rows, tmp_path):
    first = run(model, tokenizer, rows, tmp_path)
    shorter = run(model, tokenizer, rows, tmp_path, options=GenerationOptions(max_new_tokens=2))
    assert {r["settings"] for r in first}.isdisjoint(r["settings"] for r in shorter)
    with model.disable_adapter():
        base = run(model, tokenizer, rows, tmp_path)
    with torch.no_grad():
        model.encoder().embedding.weight[0, 0] += 1
    changed = run(model, tokenizer, rows, tmp_path)
    assert len({r["settings"] for r in (first[0], shorter[0], base[0], changed[0])}) == 4


def test_original_format(tmp_path):
    write_original_format([{"row_id": 3, "predict": "好", "labels": "很好", "settings": "x"}], tmp_path / "f.txt")
    assert (tmp_path / "f.txt").read_text(encoding="utf-8") == '{"labels": "很好", "predict": "好"}\n'


def test_answer_scores_leaves_the_model_in_training(model, tokenizer, rows):
    model.train()
    scores = answer_scores(model, tokenizer, rows, OPTIONS, batch_size=4)
    assert model.training
    assert set(scores) == {
        *("rouge-1", "rouge-2", "rouge-l", "bleu-4"),
        *("empty_predictions", "repeated_predictions", "looping_predictions"),
    }

"""What a run says of its rows before it trains: lengths, cuts, and rows that are held out and trained on."""

import json
import logging

import pytest

from softlaunch.arguments import parse_arguments
from softlaunch.data.dataset import load_rows
from softlaunch.models import load_tokenizer
from tests.tokenizer_files import write_released_chatglm

TRAIN = [{"prompt": f"上衣 {i}", "response": "优雅" * (i + 1)} for i in range(20)]
HELD_OUT = [{"prompt": "上衣 99", "response": "优雅"}, TRAIN[4], {**TRAIN[5], "response": "简约"}, TRAIN[4], TRAIN[7]]


@pytest.fixture
def load(tmp_path, capsys, caplog):
    tokenizer = load_tokenizer(str(write_released_chatglm(tmp_path / "base")))
    flags = ["--model_name_or_path", "x", "--output_dir", "x", "--max_target_length", "5"]
    for kind, rows in {"train": TRAIN, "validation": HELD_OUT, "test": HELD_OUT[:1]}.items():
        file = tmp_path / f"{kind}.json"
        file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
        flags += [f"--{kind}_file", str(file)]

    def load(*more: str):
        with caplog.at_level(logging.INFO):
            rows = load_rows(parse_arguments([*flags, *more]), tokenizer)
        return rows, capsys.readouterr().err, caplog.messages

    return load


def test_table_has_lengths_before_cutting_and_rows_cut(load):
    whole, _, _ = load("--do_train", "--max_target_length", "100")
    lengths = sorted(sum(label != -100 for label in labels) - 1 for labels in whole.train["labels"])  # less eos
    _, table, messages = load("--do_train", "--do_predict")
    lines = [line.split() for line in table.splitlines()]
    answers = next(line for line in lines if "answer" in line)
    count, median, _, _, longest, limit, num_cut = map(int, answers[answers.index("answer") + 1 :])
    assert (count, median, longest, limit) == (20, lengths[9], lengths[-1], 5)
    assert num_cut == sum(length > 5 for length in lengths) > 0
    assert sum("prompt" in line for line in lines) == 2  # of train and test; a reference is not cut
    assert any(f"{num_cut} of 20 rows are longer than max_target_length" in message for message in messages)


def test_rows_that_are_held_out_and_trained_on_are_counted(load):
    rows, _, messages = load("--do_train", "--do_eval", "--do_predict")
    (warning,) = [message for message in messages if "stand in" in message]
    assert "3 of 5 rows of" in warning
    assert "row_id 1, 3, 4" in warning
    assert set(rows.train.column_names) == set(rows.validation.column_names) == {"row_id", "input_ids", "labels"}


def test_every_row_keeps_a_label_however_short_the_limits(load):
    rows, _, _ = load("--do_train", "--max_source_length", "1", "--max_target_length", "1", "--legacy_truncation")
    assert all(sum(label != -100 for label in labels) == 2 for labels in rows.train["labels"])

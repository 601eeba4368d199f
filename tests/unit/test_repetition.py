"""What counts as a repeated and as a looping answer, and the rows sorted by their scores."""

import json

import pytest

from softlaunch.evaluation.comparison import extremes_table
from softlaunch.evaluation.repetition import count_repetitions, loops
from softlaunch.evaluation.report import rows_by_score, write_rows_by_score
from softlaunch.evaluation.text_metrics import score_each


def test_repeated_is_the_same_answer_to_another_prompt():
    prompts = [(1,), (2,), (3,), (3,), (4,), (5,)]
    answers = ["好的", "好的", "不行", "不行", "", ""]  # the same prompt may get the same answer; empty is empty
    assert count_repetitions(prompts, answers) == {"repeated_predictions": 2, "looping_predictions": 0}


@pytest.mark.parametrize(
    "text",
    [
        "哈" * 20,
        "ab" * 10,
        "很好。" * 7,
        "这件上衣很好看。" * 4,
        "开头不同，" + "然后就一直说这句话，" * 4,
        "x" * 3 + "哈哈哈哈好" * 4 + "结尾",
        ("一句很长的话" * 16)[:100] * 4,
        "第一行\n第二行\n" * 4,
    ],
)
def test_looping(text):
    assert loops(text)


@pytest.mark.parametrize(
    "text", ["", "哈" * 19, "很好。" * 6, "这件上衣很好看。" * 3, "".join(chr(0x4E00 + i) for i in range(500)), "…" * 6]
)
def test_not_looping(text):
    assert not loops(text)


def records(*answers):
    return [{"row_id": i, "predict": p, "labels": r} for i, (p, r) in enumerate(answers)]


def test_rows_by_score_are_worst_first_and_leave_out_rows_without_reference(tmp_path):
    found = records(("今天天气好", "今天天气好"), ("", "今天天气好"), ("好", "今天天气好"), ("好", ""))
    each = score_each([r["predict"] for r in found], [r["labels"] for r in found])
    rows = rows_by_score(["甲", "乙", "丙", "丁"], found, each)
    assert [(row["row_id"], row["prompt"]) for row in rows] == [(1, "乙"), (2, "丙"), (0, "甲")]
    assert rows[0]["rouge-l"] == 0 < rows[1]["rouge-l"] < rows[2]["rouge-l"]
    write_rows_by_score(rows, tmp_path / "rows.jsonl")
    lines = (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == rows
    assert "今天" in lines[1]


@pytest.mark.parametrize(("num_rows", "shown"), [(1, [0]), (2, [0, 1]), (5, [0, 1, 2, 3, 4]), (9, [0, 1, 2, 6, 7, 8])])
def test_table_shows_each_row_once(num_rows, shown):
    rows = [
        {"row_id": i, "rouge-l": 10.0 * i, "prompt": "p", "predict": "a" * 99, "labels": "r"} for i in range(num_rows)
    ]
    table = extremes_table(rows)
    assert [int(cell) for cell in table.columns[1].cells] == shown
    assert max(len(str(cell)) for cell in table.columns[3].cells) < 60

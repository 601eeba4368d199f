import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from softlaunch.evaluation.text_metrics import score_row, score_rows

GOLDENS = json.loads((Path(__file__).parents[1] / "goldens" / "text_metrics.json").read_text(encoding="utf-8"))
SCORES = ["rouge-1", "rouge-2", "rouge-l", "bleu-4"]
ZERO = dict.fromkeys(SCORES, 0.0)


def test_every_row_scores_as_the_original():
    for row in GOLDENS["rows"]:
        assert score_row(row["prediction"], row["reference"]) == {name: row[name] for name in SCORES}


def test_means_are_the_original_ones_and_say_what_they_were_made_from():
    rows = GOLDENS["rows"]
    scores = score_rows([row["prediction"] for row in rows], [row["reference"] for row in rows])
    assert {name: scores.pop(name) for name in SCORES} == pytest.approx(GOLDENS["mean"], rel=1e-12)
    assert scores == {
        "rows": 60,
        "empty_predictions": 0,
        "empty_references": 0,
        "metric": "adgen",
        "metric_version": 1,
    }


@pytest.mark.parametrize("text", ["", " ", "\n", "\u3000\u3000", "\t\r\n"])
def test_text_without_words_scores_zero(text):
    assert score_row(text, "宽松的裤子。") == ZERO
    assert score_row("宽松的裤子。", text) == ZERO


def test_an_empty_prediction_counts_in_the_mean():
    scores = score_rows(["宽松的裤子很好看", " "], ["宽松的裤子很好看", "宽松的裤子很好看"])
    assert scores["rows"] == 2
    assert scores["empty_predictions"] == 1
    assert scores["rouge-l"] == pytest.approx(50, abs=1e-4)
    assert scores["bleu-4"] == pytest.approx(50, abs=1e-4)


def test_a_row_without_a_reference_is_not_scored():
    scores = score_rows(["宽松的裤子很好看", "答案", ""], ["宽松的裤子很好看", "", ""])
    assert (scores["rows"], scores["empty_references"], scores["empty_predictions"]) == (1, 2, 0)
    assert scores["bleu-4"] == 100
    assert not set(SCORES) & score_rows(["答案"], [""]).keys()


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="shorter"):
        score_rows(["一", "二"], ["一"])


def test_no_text_makes_the_scorers_raise():
    characters = "。！？?.…”’ \n\r\t\u3000\u2028，好的a1\u200b\x00"
    rng = random.Random(0)
    for _ in range(500):
        prediction, reference = ("".join(rng.choices(characters, k=rng.randrange(8))) for _ in range(2))
        assert all(0 <= score <= 100 for score in score_row(prediction, reference).values())


def test_words_added_to_the_global_jieba_change_nothing():
    import jieba

    before = score_row("阔腿裤很好看", "阔腿裤好看")
    jieba.add_word("阔腿裤很好看")
    try:
        assert score_row("阔腿裤很好看", "阔腿裤好看") == before
    finally:
        jieba.del_word("阔腿裤很好看")


def test_import_is_light_and_scoring_is_silent():
    program = (
        "import sys, softlaunch.evaluation.text_metrics as metrics\n"
        "assert not {'jieba', 'nltk', 'rouge_chinese', 'torch'} & sys.modules.keys()\n"
        "metrics.score_row('好看', '好看')\n"
    )
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")

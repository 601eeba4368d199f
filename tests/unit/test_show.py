"""`softlaunch show`: rows as the model sees them."""

import json
import re
import sys
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console

from softlaunch import cli
from softlaunch.commands import show as show_command
from softlaunch.data.encode import EncodeOptions, encode_for_training
from softlaunch.data.explain import explain_row
from softlaunch.errors import ArgumentError, DataError
from tests.encoders import write_encoder
from tests.tokenizer_files import write_released_chatglm

ROWS = [
    {"prompt": "你好", "response": "谢谢", "history": []},
    {"prompt": "再见", "response": "今天天气", "history": [["推荐", "衬衫"], ["图案", "线条"]]},
    {"prompt": "上衣" * 20, "response": "设计" * 20, "history": [["早", "好"]]},
]


@pytest.fixture(scope="module")
def run_file(tmp_path_factory) -> Path:
    """A run whose base has a tokenizer and a config, and no weights at all."""
    directory = tmp_path_factory.mktemp("show")
    base = write_released_chatglm(directory / "base")
    rows = directory / "rows.json"
    rows.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS), encoding="utf-8")
    file = directory / "run.json"
    files = {f"{kind}_file": str(rows) for kind in ("train", "test")}
    run = {"model_name_or_path": str(base), "output_dir": "x", "do_train": True, "history_column": "history", **files}
    file.write_text(json.dumps({**run, "fp16": True, "max_source_length": 300}))  # fp16: of a GPU that is not here
    return file


@pytest.fixture
def show(run_file, monkeypatch, capsys):
    def show(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["softlaunch", "show", str(run_file), *words])
        cli._main()
        return capsys.readouterr().out

    return show


def test_loss_is_on_the_last_answer(show):
    found = show("--row", "1")
    assert "row 1: " in found
    assert "答：⟦今天天气</s>⟧" in found
    assert "衬衫" in found
    assert found.count("⟦") == 1 + 1 + found.split("ids: ")[1].count("⟦")  # the legend, the text, the ids


def test_options_of_the_run_come_behind(show):
    found = show("--row", "1", "--train_on_all_turns")
    for answer in ("衬衫", "线条", "今天天气</s>"):
        assert f"答：⟦{answer}⟧" in found


def test_what_was_cut_is_shown(show):
    found = show("--row", "2", "--max_source_length", "60", "--max_target_length", "4")
    lost = [line for line in found.splitlines() if line.startswith("cut off")]
    assert len(lost) == 2
    assert lost[0].startswith("cut off of the prompt, ")
    assert "早" in found  # the turn that went first
    assert re.fullmatch(r"cut off of the answer, \d+ tokens: (设计){1,19}", lost[1])
    assert "设计</s>⟧" in found


def test_without_a_row_the_first_ones_are_shown(show):
    assert show().count(" tokens, ") == len(ROWS)


def test_test_rows_are_prompts_with_their_reference(show):
    found = show("--file", "test", "--row", "0")
    assert "reference: 谢谢" in found
    assert ", 0 of them with loss" in found.replace("tokens, ", ", ")


def test_colours_stand_in_for_marks_in_a_terminal(show, monkeypatch):
    terminal = partial(Console, force_terminal=True, color_system="standard", no_color=False)
    monkeypatch.setattr(show_command, "Console", terminal)
    found = show("--row", "0")
    assert "⟦" not in found
    assert "\x1b[1;32m谢谢</s>\x1b[0m" in found


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["--row", "7"], DataError, "no usable row 7: the rows read are 0 to 2"),
        (["--row", "-1"], ArgumentError, "--row -1 is no row"),
        (["--file", "validation"], ArgumentError, "names no validation_file"),
        (["--max_sorce_length", "7"], ArgumentError, "did you mean --max_source_length?"),
        (["--prompt_column", "prompts"], DataError, 'Did you mean "prompt"?'),
    ],
)
def test_mistakes(show, words, error, message):
    with pytest.raises(error, match=message.replace("?", r"\?")):
        show(*words)


def test_rows_of_a_classifier_are_texts_and_classes(tmp_path, monkeypatch, capsys, caplog):
    base = write_encoder(tmp_path / "base")
    rows = [("球队冠军", "股市", 1), ("今日有雨", "雪", 0), ("晴", "风", 0), ("球", "雨", 1)]
    (tmp_path / "rows.tsv").write_text("a\tb\tlabel\n" + "".join(f"{a}\t{b}\t{n}\n" for a, b, n in rows), "utf-8")
    (tmp_path / "class.txt").write_text("天气\n体育\n", encoding="utf-8")
    run = {"train_file": str(tmp_path / "rows.tsv"), "class_file": str(tmp_path / "class.txt"), "do_train": True}
    columns = {"text_column": "a", "text_pair_column": "b", "do_eval": True, "report_to": "wandb"}
    file = tmp_path / "run.json"
    file.write_text(json.dumps({**run, **columns, "model_name_or_path": str(base), "output_dir": "x"}))

    def show(*words):
        monkeypatch.setattr(sys, "argv", ["softlaunch", "show", str(file), *words])
        cli._main()
        return capsys.readouterr().out

    assert show().count("tokens, class") == 3
    found = show("--row", "0", "--max_source_length", "6").replace(" ", "")
    assert f"{tmp_path}/rows.tsv:2,row0:6tokens,class体育\n" in found
    assert "\n[CLS]球队[SEP]股[SEP]\n" in found
    assert "cutoffofthetext,2tokens:冠军\ncutoffofthesecondtext,1tokens:市\n" in found
    assert "ids:2[CLS]27球34队3[SEP]29股3[SEP]\n" in found
    assert "has no effect" not in caplog.text
    with pytest.raises(DataError, match="no usable row 4: the rows read are 0 to 3"):
        show("--row", "4")
    with pytest.raises(ArgumentError, match="names no test_file"):
        show("--file", "test")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("row", range(len(ROWS)))
def test_tokens_are_those_of_training(run_file, row, legacy):
    from softlaunch.models import load_tokenizer

    tokenizer = load_tokenizer(str(run_file.parent / "base"))
    options = EncodeOptions(
        max_source_length=40, max_target_length=8, train_on_all_turns=True, legacy_truncation=legacy
    )
    encoded = encode_for_training({name: [value] for name, value in ROWS[row].items()}, tokenizer, options)
    found = explain_row({"row_id": row, **ROWS[row]}, tokenizer, options)
    assert [token.id for token in found.tokens] == encoded["input_ids"][0]
    assert [token.has_loss for token in found.tokens] == [label != -100 for label in encoded["labels"][0]]
    cut = {cut.part: cut.num_tokens for cut in found.cuts}
    assert cut.get("prompt", 0) == encoded["num_cut_source_tokens"][0]
    assert cut.get("answer", 0) == encoded["num_cut_target_tokens"][0]

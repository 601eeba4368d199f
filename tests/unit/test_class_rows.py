"""Texts and their classes: every format, the classes' order, the split, and what is wrong with rows."""

import json
import logging
import re
from pathlib import Path

import datasets
import pytest
from transformers import AutoTokenizer

from softlaunch.arguments import parse_arguments
from softlaunch.data import hub
from softlaunch.data.classes import classes_of_labels
from softlaunch.data.classification import load_class_rows
from softlaunch.data.labelled import LabelledRow
from softlaunch.data.split import stratified_split
from softlaunch.errors import ArgumentError, DataError
from softlaunch.models.encoder import load_text_tokenizer
from tests.encoders import write_encoder

ROWS = [('大"风"雪', "天气"), ("球队冠军", "体育"), ("今日有雨", "天气"), ("队员", "体育")]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return AutoTokenizer.from_pretrained(write_encoder(tmp_path_factory.mktemp("encoder")))


def load(tokenizer, tmp_path, trained=None, **options):
    argv = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    fixed = ["--model_name_or_path", "base", "--output_dir", str(tmp_path / "out"), "--use_cpu"]
    return load_class_rows(parse_arguments([*fixed, *argv], classifies=True), tokenizer, trained)


def write_formats(directory: Path) -> dict[str, dict]:
    """The same rows in every format, by the options that read them."""
    texts, labels = zip(*ROWS, strict=True)
    lines = [json.dumps({"title": text, "tag": label}, ensure_ascii=False) for text, label in ROWS]
    (directory / "rows.json").write_text("\n".join(lines), encoding="utf-8")
    quoted = [(f'"{text.replace(chr(34), chr(34) * 2)}"', label) for text, label in ROWS]
    table = "".join(f"{label},{text}\n" for text, label in quoted)
    (directory / "rows.csv").write_text("tag,title\n" + table, encoding="utf-8")
    (directory / "bare.csv").write_text(table, encoding="utf-8")
    (directory / "numbered.csv").write_text("0,1\n" + table, encoding="utf-8")
    tabs = "".join(f"{text}\t{label}\n" for text, label in ROWS)
    (directory / "rows.tsv").write_text("title\ttag\n" + tabs, encoding="utf-8")
    (directory / "bare.txt").write_text(tabs, encoding="utf-8")
    rows = datasets.Dataset.from_dict({"title": list(texts), "tag": list(labels)})
    rows.to_parquet(directory / "rows.parquet")
    coded = rows.cast_column("tag", datasets.ClassLabel(names=["天气", "体育"]))
    datasets.DatasetDict({"train": coded, "validation": coded.select([0, 1])}).save_to_disk(directory / "splits")
    named, by_number = {"text_column": "title", "label_column": "tag"}, {"text_column": 1, "label_column": 0}
    return {
        **dict.fromkeys(("rows.json", "rows.csv", "rows.tsv", "rows.parquet", "splits"), named),
        **dict.fromkeys(("bare.csv", "numbered.csv"), by_number),
        "bare.txt": {"text_column": 0, "label_column": 1},
    }


def test_every_format_gives_the_same_rows(tokenizer, tmp_path):
    for name, options in write_formats(tmp_path).items():
        rows = load(tokenizer, tmp_path, train_file=tmp_path / name, do_train=True, **options)
        names = ("天气", "体育") if name == "splits" else ("体育", "天气")  # a dataset knows its classes in their order
        assert rows.classes.names == names, name
        assert [row.text for row in rows.train.rows] == [text for text, _ in ROWS], name
        assert [names[label] for label in rows.train.encoded["labels"]] == [label for _, label in ROWS], name
        assert rows.train.encoded["row_id"][:] == [0, 1, 2, 3]
    text = tokenizer.decode(rows.train.encoded["input_ids"][1]).replace(" ", "")
    assert text == "[CLS]球队冠军[SEP]"


def test_the_splits_of_a_saved_dataset_serve_all_steps(tokenizer, tmp_path):
    options = write_formats(tmp_path)["splits"]
    rows = load(tokenizer, tmp_path, train_file=tmp_path / "splits", do_train=True, do_eval=True, **options)
    assert len(rows.train.rows) == 4
    assert [row.text for row in rows.validation.rows] == ['大"风"雪', "球队冠军"]
    with pytest.raises(DataError, match="no test split"):
        load(tokenizer, tmp_path, train_file=tmp_path / "splits", do_predict=True, **options)


def test_a_split_of_the_hub_knows_its_classes(tokenizer, tmp_path, monkeypatch):
    rows = datasets.Dataset.from_dict({"text": ["晴", "球"], "label": [0, 1]})
    rows = rows.cast_column("label", datasets.ClassLabel(names=["天气", "体育"]))
    monkeypatch.setattr(hub, "_load", lambda name: {"train": rows, "test": rows})
    for name in ("own/er", "own/er/train"):
        assert load(tokenizer, tmp_path, train_file=name, do_train=True).classes.names == ("天气", "体育"), name


def test_pairs_are_encoded_together(tokenizer, tmp_path):
    file = tmp_path / "pairs.tsv"
    file.write_text("a\tb\tlabel\n球队\t冠军\t1\n风\t雪\t0\n", encoding="utf-8")
    rows = load(tokenizer, tmp_path, train_file=file, do_train=True, text_column="a", text_pair_column="b")
    assert tokenizer.decode(rows.train.encoded["input_ids"][0]).replace(" ", "") == "[CLS]球队[SEP]冠军[SEP]"
    assert rows.train.encoded["token_type_ids"][0] == [0] * 4 + [1] * 3


def test_classes_come_in_a_stable_order():
    assert classes_of_labels(["10", "9", "2"]).names == ("2", "9", "10")
    assert classes_of_labels(["b", "10", "a"]).names == ("10", "a", "b")


def test_a_class_file_gives_names_to_numbers(tokenizer, tmp_path):
    (tmp_path / "class.txt").write_text("天气\n体育\n", encoding="utf-8")
    (tmp_path / "rows.txt").write_text("晴\t0\n球\t1\n雨\t天气\n", encoding="utf-8")
    options = {"text_column": 0, "label_column": 1, "class_file": tmp_path / "class.txt", "do_train": True}
    rows = load(tokenizer, tmp_path, train_file=tmp_path / "rows.txt", **options)
    assert rows.classes.names == ("天气", "体育")
    assert rows.train.encoded["labels"][:] == [0, 1, 0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("天气\n", "names 1 classes, but the labels of .*rows.txt go up to 1: 2 lines are needed"),
        ("天气\n\n体育\n", "class.txt:2 is empty"),
        ("天气\n体育\n天气\n", "class.txt:3: the class 天气 is named twice"),
        (None, "class.txt does not exist"),
    ],
)
def test_a_class_file_that_cannot_be_one(tokenizer, tmp_path, content, message):
    (tmp_path / "rows.txt").write_text("晴\t0\n球\t1\n", encoding="utf-8")
    if content is not None:
        (tmp_path / "class.txt").write_text(content, encoding="utf-8")
    options = {"text_column": 0, "label_column": 1, "class_file": tmp_path / "class.txt", "do_train": True}
    with pytest.raises(DataError, match=message):
        load(tokenizer, tmp_path, train_file=tmp_path / "rows.txt", **options)


def test_a_class_that_only_the_class_file_has_is_named(tokenizer, tmp_path, caplog):
    (tmp_path / "class.txt").write_text("天气\n体育\n财经\n", encoding="utf-8")
    (tmp_path / "rows.txt").write_text("晴\t0\n球\t1\n", encoding="utf-8")
    options = {"text_column": 0, "label_column": 1, "class_file": tmp_path / "class.txt", "do_train": True}
    load(tokenizer, tmp_path, train_file=tmp_path / "rows.txt", **options)
    assert "no training row is of the class 财经" in caplog.text


BY_NUMBER = {"text_column": 0, "label_column": 1}
BAD_ROWS = {
    "晴\t0\n\t1\n球\t1\n": r'"0" is empty\n  .*train.txt:2',
    "晴\t0\n球\t\n球\t1\n": r'"1" is empty\n  .*train.txt:2',
    "晴\t0\n球\t1\t2\n球\t1\n": r"train.txt:2: 3 instead of 2",
    "晴\t0\n球\t0\n": "holds the single class 0",
    "0\t晴\n1\t球\n": 'the text column "0" holds numbers, such as 0',
    "晴\n球\n": 'has no column "1"',
}


@pytest.mark.parametrize("content", BAD_ROWS)
def test_rows_that_cannot_be_used_are_named(tokenizer, tmp_path, content):
    file = tmp_path / "train.txt"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=BAD_ROWS[content]):
        load(tokenizer, tmp_path, train_file=file, do_train=True, **BY_NUMBER)


def test_columns_that_look_like_others_are_named(tokenizer, tmp_path, caplog):
    rows = "".join(f"晴{i}\t{i % 2}\n" for i in range(20))
    (tmp_path / "plain.tsv").write_text(rows, encoding="utf-8")
    (tmp_path / "headed.tsv").write_text("text\tlabel\n" + rows, encoding="utf-8")
    load(tokenizer, tmp_path, train_file=tmp_path / "plain.tsv", do_train=True, **BY_NUMBER)
    named = load(tokenizer, tmp_path, train_file=tmp_path / "headed.tsv", do_train=True)
    assert (caplog.text, named.classes.names) == ("", ("0", "1"))
    load(tokenizer, tmp_path, train_file=tmp_path / "headed.tsv", do_train=True, **BY_NUMBER)
    assert "headed.tsv:1: the first line is taken for a row, and no other is of its class label" in caplog.text
    columns = {"text_column": "label", "label_column": "text"}
    (tmp_path / "headed.tsv").write_text("text\tlabel\n" + rows.replace("\t", "\t类"), encoding="utf-8")
    load(tokenizer, tmp_path, train_file=tmp_path / "headed.tsv", do_train=True, **columns)
    assert "20 classes in 20 rows: are text_column label and label_column text swapped?" in caplog.text


@pytest.mark.parametrize(
    ("name", "mark", "own"), [("rows.csv", ";", ","), ("rows.tsv", ",", r"\\t"), ("rows.csv", "|", ",")]
)
def test_another_separator_is_named(tokenizer, tmp_path, name, mark, own):
    (tmp_path / name).write_text(f"content{mark}label\n晴{mark}天气\n", encoding="utf-8")
    message = f"have '{re.escape(mark)}' between its columns; a {name[4:]} file has '{own}' there"
    with pytest.raises(DataError, match=message):
        load(tokenizer, tmp_path, train_file=tmp_path / name, do_train=True, text_column="content")


def test_a_class_file_and_rows_in_gbk(tokenizer, tmp_path):
    (tmp_path / "class.txt").write_text("天气\n体育\n", encoding="gbk")
    (tmp_path / "rows.tsv").write_text("晴\t0\n球\t体育\n", encoding="gbk")
    options = {"class_file": tmp_path / "class.txt", "train_file": tmp_path / "rows.tsv", "do_train": True, **BY_NUMBER}
    rows = load(tokenizer, tmp_path, file_encoding="gbk", **options)
    assert (rows.classes.names, [row.text for row in rows.train.rows]) == (("天气", "体育"), ["晴", "球"])
    with pytest.raises(DataError, match="gb18030"):
        load(tokenizer, tmp_path, **options)


@pytest.mark.parametrize("skip", [False, True])
def test_rows_without_a_usable_label_are_named(tokenizer, tmp_path, skip):
    rows = [{"text": "晴", "label": ""}, {"text": "球", "label": True}, {"text": "雨", "label": ["天气"]}]
    file = tmp_path / "train.json"
    file.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    with pytest.raises(DataError, match=r"3 of 3 rows cannot be used\.\n2 × the class is .*\n  .*train.json:2: True"):
        load(tokenizer, tmp_path, train_file=file, do_train=True, skip_bad_rows=skip)


def test_bad_rows_are_skipped_on_request(tokenizer, tmp_path, caplog):
    file = tmp_path / "train.txt"
    file.write_text("晴\t0\n\t1\n球\t1\n", encoding="utf-8")
    rows = load(tokenizer, tmp_path, train_file=file, do_train=True, skip_bad_rows=True, **BY_NUMBER)
    assert [row.number for row in rows.train.rows] == [1, 3]
    assert "dropped 1 of 3 rows" in caplog.text


def test_a_class_that_training_never_had_is_named(tokenizer, tmp_path):
    (tmp_path / "train.txt").write_text("晴\t天气\n球\t体育\n", encoding="utf-8")
    (tmp_path / "dev.txt").write_text("晴\t天气\n球\t体肓\n", encoding="utf-8")
    files = {"train_file": tmp_path / "train.txt", "validation_file": tmp_path / "dev.txt"}
    with pytest.raises(DataError, match=r'no training row has\n  .*dev.txt:2: \'体肓\'; did you mean "体育"'):
        load(tokenizer, tmp_path, do_train=True, do_eval=True, **files, **BY_NUMBER)


def test_a_model_that_is_evaluated_brings_its_classes(tokenizer, tmp_path):
    (tmp_path / "dev.txt").write_text("晴\t天气\n球\t\n", encoding="utf-8")
    options = {"test_file": tmp_path / "dev.txt", "do_predict": True, **BY_NUMBER}
    rows = load(tokenizer, tmp_path, trained=["体育", "天气"], **options)
    assert rows.test.encoded["labels"][:] == [1, -1]  # a row to predict needs no label
    with pytest.raises(DataError, match="neither the class file nor the model"):
        load(tokenizer, tmp_path, trained=["体育", "财经"], **options)
    with pytest.raises(DataError, match="num_labels is 3"):
        load(tokenizer, tmp_path, trained=["体育", "天气"], num_labels=3, **options)


def test_num_labels_must_agree_with_the_data(tokenizer, tmp_path):
    (tmp_path / "train.txt").write_text("晴\t天气\n球\t体育\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"num_labels is 3, but .*train.txt has 2 classes: 体育, 天气"):
        load(tokenizer, tmp_path, train_file=tmp_path / "train.txt", do_train=True, num_labels=3, **BY_NUMBER)


def labelled(*labels: str) -> list[LabelledRow]:
    return [LabelledRow(i, i + 1, f"text {i}", None, label) for i, label in enumerate(labels)]


def test_the_split_takes_its_share_of_every_class():
    rows = labelled(*["a"] * 50, *["b"] * 30, *["c"] * 3, "d")
    train, validation = stratified_split(rows, 0.1, seed=1)
    assert [row.label for row in validation] == ["a"] * 5 + ["b"] * 3 + ["c"]  # the last row of a class is never taken
    assert sorted([*train, *validation]) == rows
    assert stratified_split(rows, 0.1, seed=1)[1] == validation
    assert stratified_split(rows, 0.1, seed=2)[1] != validation


def test_a_repeated_text_is_never_held_out():
    rows = labelled(*["a"] * 6)
    rows += [row._replace(row_id=row.row_id + 6, number=row.number + 6) for row in rows[:5]]
    _, validation = stratified_split(rows, 0.5, seed=0)
    assert [row.row_id for row in validation] == [5]


def test_texts_of_both_training_and_validation_are_counted_and_named(tokenizer, tmp_path, caplog):
    (tmp_path / "train.txt").write_text("晴\t天气\n球\t体育\n", encoding="utf-8")
    (tmp_path / "dev.txt").write_text("雨\t天气\n球\t体育\n", encoding="utf-8")
    files = {"train_file": tmp_path / "train.txt", "validation_file": tmp_path / "dev.txt"}
    load(tokenizer, tmp_path, do_train=True, do_eval=True, **files, **BY_NUMBER)
    assert "1 of 2 texts are among the training texts too" in caplog.text
    assert f"{tmp_path}/dev.txt:2 = {tmp_path}/train.txt:2: 球" in caplog.text


def test_without_validation_rows_some_are_held_out(tokenizer, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="softlaunch")
    (tmp_path / "train.txt").write_text("".join(f"晴{i}\t天气\n球{i}\t体育\n" for i in range(10)), encoding="utf-8")
    options = {"train_file": tmp_path / "train.txt", "validation_share": 0.2, **BY_NUMBER}
    rows = load(tokenizer, tmp_path, do_train=True, do_eval=True, **options)
    assert (len(rows.train.rows), len(rows.validation.rows)) == (16, 4)
    alone = load(tokenizer, tmp_path, trained=["体育", "天气"], do_eval=True, **options)
    assert alone.validation.rows == rows.validation.rows  # also when it is evaluated later
    assert alone.train is None
    assert "rows of each class" in caplog.text
    assert "tokens of a row" in caplog.text


def test_a_limit_draws_rows_at_random(tokenizer, tmp_path):
    (tmp_path / "train.txt").write_text("".join(f"晴{i}\t{i // 50}\n" for i in range(100)), encoding="utf-8")
    options = {"train_file": tmp_path / "train.txt", "do_train": True, **BY_NUMBER}
    rows = load(tokenizer, tmp_path, max_train_samples=20, **options)
    assert len(rows.train.rows) == 20
    assert {row.label for row in rows.train.rows} == {"0", "1"}  # although the file is sorted by class


def test_texts_longer_than_the_encoder_takes_are_refused(tmp_path):
    path = str(write_encoder(tmp_path / "base"))
    with pytest.raises(ArgumentError, match=r"max_source_length is 129, but .*base takes at most 128 tokens"):
        load_text_tokenizer(path, 129)
    load_text_tokenizer(path, 120, num_virtual_tokens=8)
    with pytest.raises(ArgumentError, match=r"set max_source_length to 120, or pre_seq_len lower"):
        load_text_tokenizer(path, 128, num_virtual_tokens=8)

"""Every method on an encoder: what trains, what is saved, and the same logits in another process."""

import io
import json
import logging
import os
import runpy
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from peft import PeftModelForSequenceClassification
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForSequenceClassification, BertModel

from softlaunch import cli, entry
from softlaunch.commands.classify import _lines
from softlaunch.errors import ArgumentError, CheckpointError, DataError
from softlaunch.evaluation.classify import load_classifier
from softlaunch.training.classifier import balanced_weights
from softlaunch.tuning.classifier import METHODS
from tests.encoders import CLASSES, titles, write_encoder, write_titles

ROOT = Path(__file__).parents[2]
PROMPTED = ("p_tuning_v2", "prompt_tuning", "p_tuning")
TEXTS = [title for title, _ in titles(6, seed=7)]


def classify(*argv: str) -> None:
    """The recipe, in this process."""
    recipe = runpy.run_path(str(ROOT / "recipes" / "classify.py"))
    before, sys.argv = sys.argv, ["classify.py", *argv]
    try:
        recipe["main"]()
    finally:
        sys.argv = before


def arguments(directory: Path, method: str, **options: object) -> list[str]:
    given = {
        "model_name_or_path": directory / "base",
        "train_file": directory / "train.txt",
        "text_column": 0,
        "label_column": 1,
        "tuning": method,
        "output_dir": directory / method,
        "do_train": "true",
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "load_best_model_at_end": "true",
        "num_train_epochs": 8,
        "per_device_train_batch_size": 16,
        "learning_rate": 0.005,
        "max_source_length": 32,
        "disable_tqdm": "true",
        "report_to": "none",
        **({"pre_seq_len": 4} if method in PROMPTED else {}),
        **options,
    }
    return [word for name, value in given.items() for word in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A run of every method, each in the folder of its name."""
    directory = tmp_path_factory.mktemp("runs")
    write_encoder(directory / "base")
    write_titles(directory / "train.txt", titles(180))
    write_titles(directory / "test.txt", titles(30, seed=1))
    for method in METHODS:
        classify(*arguments(directory, method, test_file=directory / "test.txt", do_predict="true"))
    return directory


def trained(runs: Path, method: str) -> Path:
    return runs / method / ("model" if method in ("full", "freeze") else "adapter")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def test_a_run_leaves_these_files(runs):
    expected = {
        *("adapter", "record.json", "run.json", ".lock", "metrics.jsonl", "predictions.jsonl"),
        *("train_results.json", "eval_results.json", "predict_results.json", "all_results.json"),
        *(
            f"{step}_{name}"
            for step in ("eval", "predict")
            for name in ("confusion.csv", "confusion.png", "mistakes.jsonl")
        ),
    }
    for method in METHODS:
        found = {path.name for path in (runs / method).iterdir() if not path.name.startswith("checkpoint-")}
        assert found == expected - {"adapter"} | {trained(runs, method).name}, method


def test_what_is_trained_is_saved_with_the_head_and_nothing_else(runs):
    base = load_file(runs / "base" / "model.safetensors")
    for method in METHODS:
        saved = weights(trained(runs, method))
        assert any("classifier.weight" in name for name in saved), method
        assert any("pooler.dense.weight" in name for name in saved), method  # the base has none: it is new, and trains
        if trained(runs, method).name == "adapter":
            assert not any("embeddings.word" in name for name in saved), method
    freeze = weights(runs / "freeze" / "model")
    assert freeze["bert.embeddings.word_embeddings.weight"].equal(base["bert.embeddings.word_embeddings.weight"])
    full = weights(runs / "full" / "model")
    assert not full["bert.embeddings.word_embeddings.weight"].equal(base["bert.embeddings.word_embeddings.weight"])


def test_a_new_process_computes_the_same(runs):
    script = f"""
import json
from softlaunch.evaluation.classify import load_classifier
found = {{m: [list(p.probabilities.values()) for p in load_classifier("{runs}/" + m)({TEXTS!r})] for m in {METHODS!r}}}
open("{runs}/found.json", "w").write(json.dumps(found))
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
    found = json.loads((runs / "found.json").read_text())
    rows = [title for title, _ in titles(30, seed=1)]
    for method in METHODS:
        here = load_classifier(runs / method)
        assert torch.tensor(found[method]).equal(torch.tensor([list(p.probabilities.values()) for p in here(TEXTS)])), (
            method
        )
        lines = (runs / method / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
        recorded = [json.loads(line) for line in lines]  # what the run itself computed before it saved
        for record, prediction in zip(recorded, here(rows), strict=True):
            assert prediction.probabilities == pytest.approx(record["probabilities"], abs=2e-6), method


def test_the_methods_learn_the_classes(runs):
    for method in METHODS:
        results = json.loads((runs / method / "all_results.json").read_text())
        assert results["predict_accuracy"] >= 0.5, method  # 1/3 is guessing


def test_the_best_checkpoint_is_what_is_left(runs):
    """Also of P-tuning, of which PEFT saves the result alone, and of a head and a prefix, which are not PEFT's."""
    for method in METHODS:
        logs = [json.loads(line) for line in (runs / method / "metrics.jsonl").read_text().splitlines()]
        scores = {line["step"]: line["eval_f1_macro"] for line in logs if "eval_f1_macro" in line and "epoch" in line}
        results = json.loads((runs / method / "all_results.json").read_text())
        assert results["best_metric"] == max(scores.values()), method
        assert results["eval_f1_macro"] == pytest.approx(max(scores.values())), method
        best = weights(runs / method / results["best_checkpoint"])
        left = weights(trained(runs, method))
        assert best.keys() == left.keys(), method
        assert all(best[name].equal(left[name]) for name in left), method


def test_names_of_the_classes_are_saved_with_the_model(runs):
    for method in METHODS:
        config = json.loads((trained(runs, method) / "config.json").read_text(encoding="utf-8"))
        assert config["id2label"] == {str(number): name for number, name in enumerate(sorted(CLASSES))}, method


def test_stock_libraries_read_what_is_theirs(runs):
    whole = AutoModelForSequenceClassification.from_pretrained(runs / "full" / "model")
    assert whole.config.label2id == {name: number for number, name in enumerate(sorted(CLASSES))}
    ours = load_classifier(runs / "lora")
    inputs = ours.tokenizer(TEXTS[0], return_tensors="pt")
    for method in ("lora", "ia3", "prompt_tuning", "p_tuning"):
        base = AutoModelForSequenceClassification.from_pretrained(runs / "base", num_labels=3)
        stock = PeftModelForSequenceClassification.from_pretrained(base, runs / method / "adapter").eval()
        expected = list(load_classifier(runs / method)(TEXTS[0]).probabilities.values())
        assert stock(**inputs).logits.softmax(-1)[0].tolist() == pytest.approx(expected, abs=1e-6), method


def test_training_goes_on_from_its_checkpoint(runs, tmp_path):
    for method in ("p_tuning", "head", "p_tuning_v2"):
        longer = arguments(runs, method, output_dir=tmp_path / method, num_train_epochs=2, learning_rate=0.01)
        classify(*longer, "--lr_scheduler_type", "constant")
        newest = tmp_path / method / "checkpoint-22"
        going_on = ("--num_train_epochs", "4", "--resume_from_checkpoint", str(newest))
        classify(*longer, *going_on, "--lr_scheduler_type", "constant")
        at_once = [*longer, "--output_dir", str(tmp_path / f"{method} at once"), "--num_train_epochs", "4"]
        classify(*at_once, "--lr_scheduler_type", "constant")
        one, other = (weights(tmp_path / name / "checkpoint-44") for name in (method, f"{method} at once"))
        assert one.keys() == other.keys()
        assert all(one[name].allclose(other[name], atol=1e-6) for name in one), method


def test_a_frozen_encoder_sees_every_row_once(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    seen: list[int] = []
    forward = BertModel.forward

    def counting(self, input_ids=None, **kwargs):
        seen.append(len(input_ids))
        return forward(self, input_ids, **kwargs)

    monkeypatch.setattr(BertModel, "forward", counting)
    run = arguments(runs, "head", output_dir=tmp_path / "out", num_train_epochs=5)
    classify(*run)
    assert sum(seen) == 180 + 4  # 4 rows are looked at by the whole model too, to see whether it agrees
    classify(*run, "--restart", "--learning_rate", "0.01")
    assert sum(seen) == 180 + 4 + 4  # the second run finds all rows in the cache


def test_class_weights_are_as_scikit_learn_balances_them():
    from sklearn.utils.class_weight import compute_class_weight

    labels = [0] * 6 + [1] * 3 + [2]
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert balanced_weights(labels, 3).tolist() == pytest.approx(expected.tolist())


def test_small_batches_train_like_one_large_one(runs, tmp_path):
    """Class weights and gradient accumulation included: the loss is a mean over the rows of the optimizer step."""
    write_titles(tmp_path / "train.txt", titles(90)[:70] + [row for row in titles(90)[70:] if row[1] == "体育"])
    losses = {}
    for size in (16, 4):
        options = {"train_file": tmp_path / "train.txt", "output_dir": tmp_path / str(size), "class_weights": "true"}
        argv = arguments(runs, "head", **options, per_device_train_batch_size=size, max_steps=4, logging_steps=1)
        classify(*argv, "--gradient_accumulation_steps", str(16 // size), "--data_seed", "3", "--weight_decay", "0")
        lines = [json.loads(line) for line in (tmp_path / str(size) / "metrics.jsonl").read_text().splitlines()]
        losses[size] = [line["loss"] for line in lines if "loss" in line]
    assert losses[16][0] == pytest.approx(losses[4][0], rel=0.1)  # dropout differs, the scale does not
    assert len(losses[16]) == 4


def test_early_stopping_ends_the_run(runs, tmp_path):
    """And TensorBoard is told what stands in metrics.jsonl, by the same names and at the same steps."""
    options = {"num_train_epochs": 50, "learning_rate": 1e-9, "logging_steps": 5, "report_to": "tensorboard"}
    classify(*arguments(runs, "head", output_dir=tmp_path, **options), *("--early_stopping_patience", "2"))
    state = json.loads((tmp_path / "all_results.json").read_text())
    assert state["epoch"] == pytest.approx(3.0)  # one that counts as the best, and two that are no better

    (file,) = tmp_path.glob("runs/**/events*")
    events = EventAccumulator(str(file)).Reload()
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for scalar, name in (("train/loss", "loss"), ("eval/loss", "eval_loss"), ("eval/f1_macro", "eval_f1_macro")):
        found = {event.step: event.value for event in events.Scalars(scalar)}
        assert found == pytest.approx({line["step"]: line[name] for line in logged if name in line}), scalar
        assert len(found) >= 3


def test_a_mistake_ends_with_code_2_and_touches_nothing(runs, tmp_path, monkeypatch, capsys):
    write_titles(tmp_path / "test.txt", [("球赛", "体育"), ("晴", "天汽")])
    left = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in (runs / "head").rglob("*") if path.is_file()}
    monkeypatch.setattr(entry, "_set_up_logging", lambda: None)
    mistakes = {
        "test.txt:2: '天汽'; did you mean \"天气\"?": {"test_file": tmp_path / "test.txt", "do_predict": "true"},
        "metric_for_best_model macro_f1 is no score": {"metric_for_best_model": "macro_f1"},
        "report_to tensorbord is no tracker": {"report_to": "tensorbord"},
    }
    for message, options in mistakes.items():
        argv = arguments(runs, "head", **{"restart": "true", "learning_rate": 0.01, **options})
        monkeypatch.setattr(sys, "argv", ["classify.py", *argv])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "recipes" / "classify.py"), run_name="__main__")
        assert ended.value.code == 2
        assert message in capsys.readouterr().err
    found = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in left}
    assert found == left
    assert len(left) == sum(path.is_file() for path in (runs / "head").rglob("*"))


def test_a_head_of_another_size_begins_anew_and_is_refused_for_prediction(runs, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="softlaunch")
    write_titles(tmp_path / "train.txt", [(title, f"{name}{len(title) % 2}") for title, name in titles(60)])
    other = {"model_name_or_path": runs / "full" / "model", "output_dir": tmp_path / "out"}
    classify(*arguments(runs, "lora", train_file=tmp_path / "train.txt", max_steps=1, **other))
    assert "its head has 3 classes, 6 are needed: classifier begin anew and must be trained" in caplog.text
    (tmp_path / "class.txt").write_text("体育\n财经\n", encoding="utf-8")
    options = {"do_train": "false", "eval_strategy": "no", "load_best_model_at_end": "false", "do_predict": "true"}
    argv = arguments(runs, "full", test_file=runs / "test.txt", class_file=tmp_path / "class.txt", **options)
    with pytest.raises(DataError, match="neither the class file nor the model"):
        classify(*argv, "--model_name_or_path", str(runs / "full" / "model"), "--output_dir", str(tmp_path / "p"))
    (tmp_path / "class.txt").write_text("体育\n财经\n天气\n科技\n", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"no trained head for 4 classes here \(its head has 3 classes\)"):
        classify(*argv, "--model_name_or_path", str(runs / "full" / "model"), "--output_dir", str(tmp_path / "p"))
    with pytest.raises(CheckpointError, match=r"no trained head for 4 classes here \(it has none\)"):
        classify(*argv, "--output_dir", str(tmp_path / "p"))
    with pytest.raises(DataError, match="but the model tells apart 体育, 天气, 财经"):
        classify(*argv)  # the model that the run has left


def test_an_adapter_is_evaluated_and_trained_further(runs, tmp_path):
    options = {"do_train": "false", "eval_strategy": "no", "load_best_model_at_end": "false", "do_predict": "true"}
    argv = arguments(runs, "lora", test_file=runs / "test.txt", adapter=runs / "lora", output_dir=tmp_path, **options)
    classify(*argv)
    found, before = ((folder / "predictions.jsonl").read_text() for folder in (tmp_path, runs / "lora"))
    assert found == before
    classify(
        *arguments(runs, "lora", adapter=runs / "lora", output_dir=tmp_path / "more", max_steps=1, learning_rate=1e-9)
    )
    one, other = weights(tmp_path / "more" / "adapter"), weights(runs / "lora" / "adapter")
    assert all(one[name].allclose(other[name], atol=1e-6) for name in other)
    with pytest.raises(CheckpointError, match="no trained classifier here"):
        classify(*argv, "--adapter", str(tmp_path / "nothing"))


def test_an_adapter_of_another_base_is_refused(runs, tmp_path):
    write_encoder(tmp_path / "base")
    tensors = BertModel.from_pretrained(tmp_path / "base")
    with torch.no_grad():
        for parameter in tensors.parameters():
            parameter.mul_(1.5)
    tensors.save_pretrained(tmp_path / "base")
    for method in ("lora", "p_tuning_v2", "head"):
        with pytest.raises(CheckpointError, match="another base"):
            load_classifier(runs / method, base=str(tmp_path / "base"))


def test_options_that_do_not_go_together(runs):
    with pytest.raises(ArgumentError, match="early_stopping_patience needs load_best_model_at_end"):
        classify(*arguments(runs, "lora", load_best_model_at_end="false", early_stopping_patience=2))
    with pytest.raises(ArgumentError, match="one method at a time"):
        classify(*arguments(runs, "lora", pre_seq_len=4, lora_r=2))
    with pytest.raises(ArgumentError, match="max_source_length 128 and 4 virtual tokens"):
        classify(*arguments(runs, "p_tuning", max_source_length=128, output_dir=runs / "none"))
    with pytest.raises(ArgumentError, match="pre_seq_len is not set"):
        classify(*arguments(runs, "p_tuning_v2", pre_seq_len="null", output_dir=runs / "none"))


def test_one_call_classifies(runs):
    classify_text = load_classifier(runs / "lora")
    one = classify_text(TEXTS[0])
    assert one.label in CLASSES
    assert one.probability == max(one.probabilities.values())
    assert sum(one.probabilities.values()) == pytest.approx(1.0)
    together = classify_text(TEXTS)
    for text, prediction in zip(TEXTS, together, strict=True):  # batched as alone
        assert prediction.probabilities == pytest.approx(classify_text(text).probabilities, abs=1e-6)
    checkpoint = next((runs / "lora").glob("checkpoint-*"))
    assert load_classifier(checkpoint)(TEXTS[0]).label in CLASSES
    with pytest.raises(DataError, match="a text is empty"):
        classify_text(" ")
    with pytest.raises(DataError, match="single texts"):
        classify_text([("a", "b")])
    with pytest.raises(CheckpointError, match="no trained classifier here"):
        load_classifier(runs / "base")


def test_the_command_reads_a_pipe_a_file_and_a_prompt(runs, tmp_path, monkeypatch, capsys):
    expected = load_classifier(runs / "lora")(TEXTS[:2])
    lines = "\n".join([TEXTS[0], "", TEXTS[1]]) + "\n"

    def command(*words, given="", is_terminal=False):
        content = given if isinstance(given, bytes) else given.encode()
        stdin = io.TextIOWrapper(io.BytesIO(content), encoding="utf-8", errors="surrogateescape")
        monkeypatch.setattr(stdin, "isatty", lambda: is_terminal, raising=False)
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr(sys, "argv", ["softlaunch", "classify", str(runs / "lora"), *words])
        cli._main()
        return capsys.readouterr().out.removesuffix("\n").split("\n")

    piped = [line.split("\t") for line in command(given=lines)]
    assert piped[1] == ["", "", ""]  # a line for every line
    del piped[1]
    assert [(label, text) for label, _, text in piped] == [(expected[i].label, TEXTS[i]) for i in (0, 1)]
    assert [float(p) for _, p, _ in piped] == pytest.approx([p.probability for p in expected], abs=1e-4)
    assert len(command(given=f"{TEXTS[0]}\u2028{TEXTS[1]}\n{TEXTS[1]}")) == 2
    (tmp_path / "texts.txt").write_text("\ufeff" + lines.replace("\n", "\r\n"), encoding="utf-8")
    records = [json.loads(line) for line in command("--json", "--file", str(tmp_path / "texts.txt"))]
    assert [record["text"] for record in records] == [TEXTS[0], "", TEXTS[1]]
    assert (records[1]["predict"], records.pop(1)["probabilities"]) == (None, None)
    for record, prediction in zip(records, expected, strict=True):
        assert record["probabilities"] == pytest.approx(prediction.probabilities, abs=1e-6)
    asked = command(given=f"{TEXTS[0]}\n\nq\n{TEXTS[1]}\n", is_terminal=True)
    assert asked[0].startswith("classes: ")
    assert "".join(asked[1:]).count(expected[0].label) == 1  # one answer: nothing for an empty line or behind q
    asked = command(given=f"a\udcffb\n{TEXTS[0]}\n".encode(errors="surrogateescape"), is_terminal=True)
    assert "".join(asked).count(expected[0].label) == 2, "a broken byte does not end the session"
    with pytest.raises(DataError, match="there is no file"):
        command("--file", str(tmp_path / "none.txt"))
    gbk = lines.encode("gbk")
    assert [line.split("\t")[2] for line in command("--encoding", "gbk", given=gbk)] == [TEXTS[0], "", TEXTS[1]]
    with pytest.raises(DataError, match=r"stdin:3: this is not utf-8 .* --encoding gb18030"):
        command(given=b"a\n\n" + gbk)
    with pytest.raises(ArgumentError, match='--encoding is "hex"'):
        command("--encoding", "hex")


def test_lines_are_answered_as_they_arrive():
    read, write = os.pipe()
    with os.fdopen(read, "rb") as stream, os.fdopen(write, "wb", buffering=0) as sender:
        lines = _lines(stream, "utf-8-sig", "stdin")
        sender.write("\ufeff一\n二".encode() + "三".encode()[:1])
        assert next(lines) == ["一"]
        sender.write("三".encode()[1:] + b"\r\n\n")
        assert next(lines) == ["二三", ""]
        sender.write(b"end")
        sender.close()
        assert list(lines) == [["end"]]


def test_the_base_is_found_from_any_directory(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(runs)
    classify(*arguments(Path(), "lora", output_dir=tmp_path / "run", max_steps=1))
    monkeypatch.chdir(tmp_path)
    assert load_classifier("run")(TEXTS[0]).label in CLASSES
    config = tmp_path / "run" / "adapter" / "config.json"
    config.write_text(config.read_text().replace(str(runs / "base"), "moved"))
    with pytest.raises(CheckpointError, match=r"of this classifier was moved\. .* or --base"):
        load_classifier("run")
    assert load_classifier("run", base=str(runs / "base"))(TEXTS[0]).label in CLASSES

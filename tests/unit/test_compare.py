"""`softlaunch compare`: what it reads from runs' files, says of them, and draws."""

import csv
import json
import subprocess
import sys

import pytest
from rich.console import Console

from softlaunch.cli import COMMANDS
from softlaunch.commands import compare
from softlaunch.errors import CheckpointError
from softlaunch.evaluation import run_figure
from softlaunch.evaluation.run_summary import read_runs

CLASSES = ["财经", "体育", "娱乐"]
COUNTS = [[8, 1, 1], [0, 10, 0], [2, 3, 5]]


def write_json(file, content):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


@pytest.fixture
def classifier(tmp_path):
    """The files of a classification run with LoRA, as far as they are compared."""
    run = tmp_path / "lora"
    data = {"validation_file": "dev.json", "test_file": "test.json"}
    write_json(run / "record.json", {"arguments": {"tuning": {"tuning": None}, "data": data}})
    size = {"trainable_parameters": 500, "parameters": 10_000, "peak_memory_gib": 1.25}
    write_json(run / "train_results.json", {"train_runtime": 61.4, **size})
    write_json(run / "eval_results.json", {"eval_accuracy": 0.5, "eval_loss": 0.9})
    write_json(run / "predict_results.json", {"predict_accuracy": 0.7667, "predict_f1_macro": 0.75, "predict_rows": 30})
    write_json(run / "adapter" / "adapter_config.json", {"peft_type": "LORA"})
    (run / "adapter" / "adapter_model.safetensors").write_bytes(bytes(2 * 1024**2))
    logged = [
        {"step": 2, "loss": 2.0},
        {"step": 4, "loss": 1.5},
        {"step": 4, "eval_loss": 1.6},
        {"step": 4, "loss": 1.4},
    ]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, logged)) + '\n{"step": 6, "lo', encoding="utf-8")
    with (run / "predict_confusion.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["", *CLASSES], *([name, *row] for name, row in zip(CLASSES, COUNTS, strict=True))])
    return run


@pytest.fixture
def generator(tmp_path):
    """A run that has generated answers to its validation rows alone, with P-Tuning v2."""
    run = tmp_path / "prefix"
    tuning = {"tuning": "p_tuning_v2"}
    write_json(run / "record.json", {"arguments": {"tuning": tuning, "data": {"validation_file": "rows.json"}}})
    write_json(run / "eval_results.json", {"eval_rouge-l": 68.4231, "eval_loss": 0.5})
    return run


def printed(runs) -> str:
    console = Console(width=200, record=True, file=None, force_terminal=False)
    with console.capture() as capture:
        console.print(compare.comparison(runs))
    return capture.get()


def test_summary_is_what_the_files_say(classifier):
    (run,) = read_runs([classifier])
    assert (run.name, run.method, run.split, run.scored_file) == ("lora", "lora", "predict", "test.json")
    assert run.scores == {"accuracy": 0.7667, "f1_macro": 0.75, "loss": 0.9}
    assert (run.trainable, run.parameters, run.train_s, run.peak_memory_gib) == (500, 10_000, 61.4, 1.25)
    assert run.saved_bytes == 2 * 1024**2
    assert run.train_curve == [(2, 2.0), (4, 1.4)]  # the step that was logged twice: the later record
    assert run.validation_curve == [(4, 1.6)]
    assert (run.confusion.names, run.confusion.counts) == (CLASSES, COUNTS)


def test_table_holds_both_kinds_of_runs_and_says_what_is_not_comparable(classifier, generator):
    text = printed(read_runs([classifier, generator]))
    assert "0.7667" in text
    assert "68.42" in text
    assert "5.00 %" in text
    assert "2.00" in text
    assert "rows.json, test.json" in text
    assert "Scores of validation rows, for want of test results: prefix" in text
    assert "Losses of validation rows, for want of those of test rows: lora" in text
    alone = printed(read_runs([classifier]))
    assert "rouge-l" not in alone
    assert "different files" not in alone


def test_test_rows_without_labels_leave_the_validation_scores(classifier):
    write_json(classifier / "predict_results.json", {"predict_runtime": 1.0})
    (run,) = read_runs([classifier])
    assert (run.split, run.scored_file, run.scores) == ("eval", "dev.json", {"accuracy": 0.5, "loss": 0.9})
    assert run.confusion is None


@pytest.mark.parametrize("content", ["", ",a,b\n", ",a,b\na,1,2\n", ",a,b\na,1\nb,1,2\n", ",a,b\na,1,2\nb,3,", "\n\n"])
def test_a_damaged_matrix_is_left_out(classifier, content):
    (classifier / "predict_confusion.csv").write_text(content)
    (classifier / "metrics.jsonl").write_bytes(b'{"step": 2, "loss": 2.0}\n\xff\xfe\n')
    (run,) = read_runs([classifier])
    assert run.confusion is None
    assert run.train_curve == [(2, 2.0)]


def test_runs_of_one_name_are_told_apart_by_their_parents(tmp_path):
    for parent in ("a", "b"):
        write_json(tmp_path / parent / "run" / "eval_results.json", {"eval_loss": 1.0})
    assert [run.name for run in read_runs([tmp_path / "a" / "run", tmp_path / "b" / "run"])] == ["a/run", "b/run"]


def test_a_directory_without_results_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"no run has left its results here"):
        read_runs([tmp_path])
    with pytest.raises(CheckpointError, match=r"nowhere: there is no such directory"):
        read_runs([tmp_path / "nowhere"])


def test_classes_without_a_font_bear_their_numbers(classifier, tmp_path, monkeypatch):
    runs = read_runs([classifier])
    drawn = []
    monkeypatch.setattr(
        run_figure, "draw_confusion_on", lambda ax, counts, names, font, title: drawn.append((font, title))
    )
    monkeypatch.setattr(run_figure, "font_with", lambda text: None)
    assert run_figure.draw_runs(runs, tmp_path / "numbers.png") is False
    monkeypatch.setattr(run_figure, "font_with", lambda text: "a font")
    assert run_figure.draw_runs(runs, tmp_path / "names.png") is True
    assert drawn == [(None, "lora"), ("a font", "lora")]
    assert (tmp_path / "names.png").read_bytes().startswith(b"\x89PNG")
    assert "lora: 0 财经, 1 体育, 2 娱乐" in compare._legend(runs, "a-package")


def test_command_writes_the_picture_without_importing_torch(classifier, generator, tmp_path):
    picture = tmp_path / "new" / "comparison.svg"
    script = """
import sys
from softlaunch.cli import main
try:
    main()
finally:
    heavy = {"torch", "transformers", "datasets", "peft"} & set(sys.modules)
    assert not heavy, heavy
"""
    command = [sys.executable, "-c", script, "compare", str(classifier), str(generator), "--output", str(picture)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "2 runs" in done.stdout
    assert "training loss" in picture.read_text(encoding="utf-8")
    wrong = [*command[:-1], str(tmp_path / "picture.docx")]
    done = subprocess.run(wrong, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert ".png, .pdf, .svg" in done.stderr
    assert "Traceback" not in done.stderr


def test_command_is_listed():
    assert COMMANDS["compare"][0] == "compare"

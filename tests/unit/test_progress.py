"""What a run shows: a bar in a terminal, plain lines elsewhere, and the table at its start."""

import io
import re

import pytest
import torch
from rich.console import Console

from softlaunch.messages import clock
from softlaunch.training.guard import TrainingError
from softlaunch.training.progress import Display, in_words
from tests.unit.test_trainer import trainer

LINE = re.compile(r"step (\d)/4  loss \d\.\d{4}  [\d,]+ tokens/s  learning rate \d\.\d\de-\d\d  \d+:\d\d left")


def in_terminal(run, **options):
    """The text that `run` will have written to its terminal."""
    file = io.StringIO()
    options = {"lines": False, **options}
    run.display = Display(run.eval_dataset, console=Console(file=file, force_terminal=True, width=100), **options)
    run.callback_handler.callbacks[0] = run.display
    return file


def test_lines_where_there_is_no_terminal(tmp_path, capsys):
    run = trainer(
        tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4, eval_strategy="steps", eval_steps=2
    )
    run.train()
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if line.startswith("step ")]
    found = [LINE.fullmatch(line) for line in lines]
    assert [match.group(1) for match in found if match] == ["1", "2", "3", "4"]
    assert [bool(match) for match in found] == [True, True, False, True, True, False]
    assert all(re.fullmatch(r"step \d/4  on held-out rows: loss \d+\.\d+", lines[i]) for i in (2, 5))
    assert "\x1b" not in out
    assert "'loss'" not in out, "Trainer prints too"
    assert "0:00 left" in lines[4]


def test_table_at_the_start(tmp_path, capsys):
    output_dir = tmp_path / "[v2]"
    run = trainer(output_dir, per_device_train_batch_size=2, gradient_accumulation_steps=2, warmup_steps=1)
    run.train()
    out = capsys.readouterr().out
    for part in (
        "768 (0.62%)",
        "prefix_encoder: 768",
        "8 to train on, 8 to evaluate on",
        "2 per device × 2 accumulated × 1 processes = 4 rows",
        "4 = 2.0 epochs",
        "0.01, linear, 1 steps of warm-up",
        "(glm, float32)",
        "│ cpu ",
        "[v2]",
    ):
        assert part in out


def test_one_bar_in_a_terminal(tmp_path, capsys):
    run = trainer(tmp_path, eval_strategy="steps", eval_steps=2)
    file = in_terminal(run)
    run.train()
    run.evaluate()
    run.predict(run.eval_dataset)
    text = file.getvalue()
    assert re.search(r"4/4.*loss \d\.\d{4}  [\d,]+ tokens/s.*\d:\d\d:\d\d", text)
    assert text.count("on held-out rows: loss") == 2
    assert "learning rate" not in text.partition("Training")[2].partition("└")[2], "no lines beside the bar"
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 3, "the cursor is hidden and shown again"
    assert capsys.readouterr() == ("", "")


def test_lines_in_a_terminal_on_request(tmp_path):
    run = trainer(tmp_path)
    file = in_terminal(run, lines=True)
    run.train()
    assert len(LINE.findall(file.getvalue())) == 4
    assert "\x1b[?25l" not in file.getvalue()


def test_an_error_leaves_the_terminal_as_it_was(tmp_path):
    run = trainer(tmp_path)
    file = in_terminal(run)
    with torch.no_grad():
        run.model.encoder().embedding.weight[0, 0] = float("nan")
    with pytest.raises(TrainingError):
        run.run_training()
    assert file.getvalue().count("\x1b[?25l") == file.getvalue().count("\x1b[?25h") == 1


def test_numbers_to_read():
    assert [clock(s) for s in (0.4, 59.6, 727, 11100)] == ["0:00", "1:00", "12:07", "3:05:00"]
    metrics = {
        "eval_loss": 0.123456,
        "eval_rows": 1070,
        "eval_metric": "adgen",
        "eval_flops": 1.5e12,
        "eval_runtime": 75.2,
    }
    words = ["loss 0.1235", "rows 1,070", "metric adgen", "flops 1,500,000,000,000", "runtime 1:15"]
    assert in_words(metrics, "eval_") == words
    assert in_words(metrics, "eval_", without=("runtime", "flops")) == words[:3]

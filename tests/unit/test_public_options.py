"""The options that argument files may name: a public interface, which is changed on purpose or not at all."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
import transformers
from transformers import Seq2SeqTrainingArguments

from softlaunch.arguments.help import format_help
from softlaunch.arguments.old_names import current_options, find_idle, find_old_name, idle_names, old_names
from softlaunch.arguments.options import all_options

ROOT = Path(__file__).parents[2]
FROZEN = Path(__file__).parent / "public_options.txt"
THEIRS = {field.name for field in fields(Seq2SeqTrainingArguments)}


def ours() -> list[str]:
    """Our own options and the old names, a line each, as `FROZEN` has them; transformers' change with its version."""
    options = [o for o in all_options().values() if o.group != "training" or o.name not in THEIRS]
    lines = [f"{o.name} ({o.group}): {o.allowed()}; default {o.default!r}" for o in options if not find_idle(o.name)]
    old = [f"{name}: old name" for name in old_names() if "checkpointing" not in name]  # which one is old varies
    return sorted([*lines, *old, *(f"{name}: no effect" for name in idle_names())])


def test_options_are_those_that_were_promised():
    """After a change on purpose: python -m tests.unit.test_public_options > tests/unit/public_options.txt"""
    assert ours() == FROZEN.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("name", sorted(current_options()))
def test_option_is_read_somewhere(name):
    """In our code or, for those of TrainingArguments, in transformers' trainer and what belongs to it."""
    assert re.search(rf"\.{name}\b", OUR_CODE) or (name in THEIRS and re.search(rf"\.{name}\b", THEIR_CODE))


def _text(files: list[Path]) -> str:
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


_LIBRARY = Path(transformers.__file__).parent
OUR_CODE = _text([*ROOT.glob("src/**/*.py"), *ROOT.glob("recipes/*.py")])
THEIR_CODE = _text([*_LIBRARY.glob("train*.py"), *_LIBRARY.glob("integrations/*.py"), *_LIBRARY.glob("optim*.py")])


@pytest.mark.parametrize("columns", [40, 80, 120, 300])
def test_help_names_every_option_once_under_a_title_and_fits_the_terminal(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    text = format_help("What it does.", classifies=True)
    names = re.findall(r"^  --(\w+)$", text, flags=re.MULTILINE)
    assert sorted(names) == sorted(current_options())
    assert max(map(len, text.splitlines())) <= min(max(columns, 80), 120)
    titles = re.findall(r"^(\S.*):$", text, flags=re.MULTILINE)
    assert titles[:4] == ["Base model", "What is trained", "Data and generated answers", "Classes of texts"]
    assert text.index("--learning_rate\n") > text.index("Steps and optimizer:")


def test_old_names_lead_to_names_of_today():
    assert all(new in current_options() for new in old_names().values())
    assert not [name for name in current_options() if find_idle(name) or find_old_name(name)]


if __name__ == "__main__":
    print("\n".join(ours()))

"""Every command, path and import in the documents is real; new documents are found by pattern."""

import argparse
import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser

from softlaunch.arguments.groups import DataArguments, ModelArguments, TrainingArguments, TuningArguments
from softlaunch.arguments.old_names import old_names
from softlaunch.cli import COMMANDS

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("recipes/**/*.md")])
RECIPE_DOCSTRINGS = sorted(ROOT.glob("recipes/*.py"))
# Stand-ins for what a reader puts in: his files, and numbers in capitals
READERS_OWN = re.compile(r"my_run|run\.json|cluster\.json|job\.yaml|^[A-Z_]+$|\$|head-node|\.local$|^\d")


def commands(text: str) -> list[str]:
    """Lines of code blocks, continued lines joined, that start one of the programs below; within lines, of python."""
    lines = text.replace("\\\n", " ").splitlines()
    found = [line.strip().removeprefix("$ ").split(" # ")[0] for line in lines]
    found += re.findall(r"`(python (?:benchmarks|-m tests)[^`]*)`", text.replace("\n", " "))
    return [line for line in found if line.split(" ")[0] in ("bash", "accelerate", "python", "cp", "softlaunch")]


CASES = [
    pytest.param(path, command, id=f"{path.relative_to(ROOT)}: {command[:60]}")
    for path in (*DOCUMENTS, *RECIPE_DOCSTRINGS)
    for command in commands(
        path.read_text(encoding="utf-8")
        if path.suffix == ".md"
        else ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    )
]


def options() -> set[str]:
    groups = (ModelArguments, TuningArguments, DataArguments, TrainingArguments)
    return {name for group in groups for name in group.__dataclass_fields__} | set(old_names())


@pytest.mark.parametrize(("path", "command"), CASES)
def test_command(path, command):
    words = shlex.split(command)
    for word in words:
        if re.search(r"\.(sh|py|json|yaml)$", word) and not READERS_OWN.search(word):
            assert (ROOT / word).is_file(), f"{word} does not exist"
    if words[0] == "softlaunch":
        parser = argparse.ArgumentParser()
        importlib.import_module(f"softlaunch.commands.{COMMANDS[words[1]][0]}").add_arguments(parser)
        arguments, overrides = parser.parse_known_args(words[2:])
        assert not overrides or "overrides" in arguments, overrides
        assert {word[2:] for word in overrides if word.startswith("--")} <= options(), overrides
    if words[0] == "python" and words[1:3] != ["-m", "pytest"]:
        script = words[2].replace(".", "/") + ".py" if words[1] == "-m" else words[1]
        source = (ROOT / script).read_text(encoding="utf-8")
        known = set(re.findall(r'"--(\w+)"', source)) | (options() if script.startswith("recipes/") else set())
        fields = set(re.findall(r"^    (\w+): .* = field\(", source, re.MULTILINE))
        assert {word[2:] for word in words if word.startswith("--")} <= known | fields, words
    if words[:2] == ["accelerate", "launch"]:
        parsed = launch_command_parser().parse_args([w for w in words[2:] if w not in ("[", "]")])
        assert parsed.training_script.startswith("recipes/")
        for word in parsed.training_script_args:
            assert not word.startswith("--") or word[2:].split("=")[0] in options() | {"help"}, word


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_python_blocks_import_what_exists_and_links_lead_somewhere(path):
    text = path.read_text(encoding="utf-8")
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("softlaunch"):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_there_is_something_to_test():
    assert len(CASES) >= 6
    assert len(DOCUMENTS) >= 2

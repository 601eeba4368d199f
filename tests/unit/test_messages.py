"""What users are told: every message has a Chinese one, and the locale chooses."""

import ast
import json
import re
import string
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from softlaunch import messages
from softlaunch.errors import DataError
from softlaunch.messages import language, say

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*ROOT.glob("src/**/*.py"), *ROOT.glob("recipes/*.py")])
CATALOGUE = json.loads((ROOT / "src/softlaunch/messages/zh.json").read_text(encoding="utf-8"))
LOGGED = [f"logger.{level}" for level in ("info", "warning", "error", "exception", "critical")]
LOCALES = ("LC_ALL", "LC_MESSAGES", "LANG", "LANGUAGE")

# Said elsewhere than where they are written: a bad row's kind, an idle option's reason, a required option's help
WRITTEN = {"BadRow": 0, "Idle": 0, "_option": "help"}
SAID_ELSEWHERE = {"say(template, column=column)", "say(idle.reason)", "say(option.help)", "say(template, **values)"}


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield node.func.id, node


def error_family() -> set[str]:
    """The names of UserError's children, theirs included."""
    family = {"UserError"}
    classes = [n for p in SOURCES for n in ast.walk(ast.parse(p.read_text("utf-8"))) if isinstance(n, ast.ClassDef)]
    for _ in range(3):
        family |= {c.name for c in classes if family & {b.id for b in c.bases if isinstance(b, ast.Name)}}
    return family


def is_whole(text: ast.expr) -> bool:
    """Whether a text has been said already, or is put together from such parts by `"…".join(…)`."""
    if not isinstance(text, ast.Call):
        return False
    return ast.unparse(text.func) == "say" or (isinstance(text.func, ast.Attribute) and text.func.attr == "join")


def templates() -> tuple[dict[str, str], list[str]]:
    """All templates with where they stand, and the calls whose template is no constant."""
    found, loose, family = {}, [], error_family()
    for path in SOURCES:
        for name, call in calls(path):
            if name in WRITTEN:
                keywords = {keyword.arg: keyword.value for keyword in call.keywords}
                if name == "_option" and "required" not in keywords:
                    continue
                text = call.args[0] if WRITTEN[name] == 0 else keywords[WRITTEN[name]]
            elif name == "say" or name in family:
                text = call.args[0]
            else:
                continue
            where = f"{path.relative_to(ROOT)}:{call.lineno}: {ast.unparse(call)}"
            if isinstance(text, ast.Constant):
                found[text.value] = where
            elif ast.unparse(call) not in SAID_ELSEWHERE and not (name in family and is_whole(text)):
                loose.append(where)
    return found, loose


TEMPLATES, LOOSE = templates()


def places(template: str) -> list[tuple]:
    """The values of a template with their conversions and formats, in the order of their names."""
    return sorted(part[1:] for part in string.Formatter().parse(template) if part[1] is not None)


def test_every_message_is_a_constant():
    assert len(TEMPLATES) > 100
    assert not LOOSE, "\n".join(LOOSE)


def test_no_line_of_the_log_is_written_where_it_is_logged():
    """`say` says it; what a logger takes itself can only be a place for that."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and ast.unparse(node.func) in LOGGED
                and isinstance(node.args[0], ast.Constant)
            ):
                assert node.args[0].value == "%s", f"{path}:{node.lineno}: {ast.unparse(node)}"


def test_no_message_is_built_in_an_f_string():
    """Three English words in a row inside an f-string: a sentence that no catalogue can hold.

    Assertions and errors that only a programmer meets may be built so, and chat templates are programs.
    """
    sentences = re.compile(r"\b[a-z]{2,} [a-z]+ [a-z]{2,}\b")
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        skipped = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.stmt)
            and ast.unparse(node).startswith(("assert", "raise RuntimeError", "raise ValueError", "def _chat_template"))
            for inner in ast.walk(node)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr) and id(node) not in skipped:
                text = "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
                assert not sentences.search(text), f"{path}:{node.lineno}: {text}"


def test_catalogue_holds_every_message_and_nothing_else():
    assert not [f"{where}: {template}" for template, where in TEMPLATES.items() if template not in CATALOGUE]
    assert not [template for template in CATALOGUE if template not in TEMPLATES], "stale"


@pytest.mark.parametrize("template", sorted(CATALOGUE))
def test_translation_has_the_same_places(template):
    translation = CATALOGUE[template]
    assert places(translation) == places(template)
    assert re.search(r"[一-鿿]", translation) or not re.search(r"[a-z]{2}", re.sub(r"\{.*?\}", "", template))


@pytest.fixture
def locale(monkeypatch):
    """Sets the locale's variables to those given, and unsets the others."""

    def set_locale(**variables: str) -> None:
        for name in LOCALES:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_locale


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "en"),
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": "en_US.UTF-8"}, "en"),
        ({"LANG": "en_US.UTF-8", "LC_MESSAGES": "zh_CN"}, "zh"),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": "C.UTF-8"}, "en"),
        ({"LANG": "en_US.UTF-8", "LANGUAGE": "zh_CN:en"}, "zh"),
        ({"LANG": "zh_CN.UTF-8", "LANGUAGE": "en"}, "en"),
        ({"LANG": "C", "LANGUAGE": "zh_CN"}, "en"),
        ({"LANG": "de_DE.UTF-8", "LANGUAGE": "de:zh"}, "zh"),
        ({"LANG": "de_DE.UTF-8"}, "en"),
    ],
)
def test_language_is_found_as_gettext_finds_it(locale, variables, expected):
    locale(**variables)
    assert language() == expected


def test_error_is_said_in_the_language_of_the_locale(locale):
    locale(LANG="zh_CN.UTF-8")
    assert str(DataError("{path} is empty. A data file needs at least one row.", path="a.json")) == (
        "a.json 是空文件。数据文件至少要有一行。"
    )
    assert say("not in the catalogue: {{{x}}}", x=1) == "not in the catalogue: {1}"
    assert say("braces {of} nobody") == "braces {of} nobody"


def test_no_catalogue_is_read_for_english(locale, monkeypatch):
    locale(LANG="en_US.UTF-8")
    monkeypatch.setattr(messages.Path, "read_text", None)
    assert say("true or false") == "true or false"


def test_a_program_ends_in_chinese(monkeypatch):
    script = """if True:
        from softlaunch import entry, errors

        def main():
            raise errors.DataError("{path} has no rows. A data file needs at least one.", path="rows.json")

        entry.run(main)"""
    monkeypatch.setenv("LC_ALL", "zh_CN.UTF-8")  # the system need not have this locale
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, encoding="utf-8")
    assert done.returncode == 2
    assert done.stderr == "错误：rows.json 中没有数据行。数据文件至少要有一行。\n"

"""The shape of the package: imports go one way, and importing a module has no effect."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "softlaunch"
MODULES = sorted(PACKAGE.rglob("*.py"))

# What all may import: it needs nothing itself
COMMON = {"errors", "messages", "files", "run_directory", "layer_names"}
# What each part may import of the others besides; in the order of a run
ALLOWED = {
    "messages": set(),
    "errors": set(),
    "files": set(),
    "collective": set(),
    "preemption": {"collective", "lifeline"},
    "lifeline": set(),
    "restarts": set(),
    "arguments": set(),
    "layer_names": set(),
    "models": {"arguments"},
    "data": {"arguments"},
    "tuning": {"arguments"},
    "training": {
        *{"arguments", "models", "data", "tuning", "record", "launching"},
        *{"collective", "preemption", "lifeline"},
    },
    "evaluation": {"arguments", "models", "data", "tuning", "collective", "preemption", "lifeline"},
    "record": {"arguments"},
    "launching": {"arguments"},
    "entry": {"lifeline", "preemption", "restarts"},
    "adapter_files": {"arguments"},
    "new_directory": set(),
    "run_directory": set(),
    "commands": {
        *("arguments", "models", "data", "tuning", "training", "evaluation", "record", "launching"),
        *("adapter_files", "new_directory", "entry"),
    },
    "cli": {"commands", "entry"},
}


def part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    if path.parent == PACKAGE and path.name == "__init__.py":
        return
    parts = {name.split(".")[1] for name in imported_modules(path) if name.startswith("softlaunch.")}
    assert parts - {part(path)} - COMMON <= ALLOWED[part(path)]


def test_launching_imports_neither_torch_nor_transformers():
    for path in PACKAGE.glob("launching/*.py"):
        heavy = {name.split(".")[0] for name in imported_modules(path)} & {"torch", "transformers"}
        assert not heavy, path


def test_recipes_are_short_and_never_imported():
    recipes = sorted((ROOT / "recipes").glob("*.py"))
    assert recipes
    for recipe in recipes:
        assert recipe.read_text(encoding="utf-8").count("\n") <= 150, recipe
        assert not [path for path in MODULES if f"recipes.{recipe.stem}" in imported_modules(path)]


def test_importing_everything_has_no_effect_and_needs_no_extras():
    """No logging set-up, no process group, no device chosen, no attention registered, no file written."""
    names = [".".join(["softlaunch", *path.relative_to(PACKAGE).with_suffix("").parts]) for path in MODULES]
    names = [name.removesuffix(".__init__") for name in names]
    script = f"""
import importlib, importlib.util, logging, os, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("deepspeed", "bitsandbytes"):
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Absent())
find_spec = importlib.util.find_spec  # accelerate and peft ask this first
def find(name, *rest):
    return None if name.split(".")[0] in ("deepspeed", "bitsandbytes") else find_spec(name, *rest)
importlib.util.find_spec = find
before = dict(os.environ)
for name in {names!r}:
    importlib.import_module(name)
import torch, transformers
assert not logging.getLogger("softlaunch").handlers
assert logging.getLogger("softlaunch").level == logging.NOTSET
assert not torch.distributed.is_initialized() and not torch.cuda.is_initialized()
assert not [name for name in transformers.AttentionInterface._global_mapping if "prefix" in name]
assert torch.get_default_dtype() == torch.float32 and torch.is_grad_enabled()
changed = {{k for k in os.environ if os.environ[k] != before.get(k)}}
assert not [k for k in changed if k.startswith(("SOFTLAUNCH", "TOKENIZERS", "TENSORBOARD"))], changed
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr

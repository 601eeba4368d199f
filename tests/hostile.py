"""Inputs that nobody means well with, made by hypothesis: each has to work or to end in a clear error.

python -m tests.hostile --cases 10000        # so many in all, spread over all kinds
"""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import argparse
import contextlib
import io
import json
import logging
import platform
import runpy
import shutil
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from softlaunch.errors import UserError
from tests.distributed.inputs import DEMO

NUMBERS = st.sampled_from(
    [0, -1, 1, 2, 7, 2**31, -(2**63), 2**64, 10**30, 0.0, 1e-300, 1e308, float("nan"), float("inf")]
)
PATHS = st.sampled_from(["/", "/etc/passwd", "../../x", "~", ".", "", "a\0b", "C:\\x", "/proc/self/mem", "\ud800"])
WORDS = st.sampled_from(["true", "null", "auto", "steps", "no", "cuda", "{}", "{x}", "%s", "[[]]", "__class__", "-1"])
TEXTS = st.text(max_size=20) | PATHS | WORDS | st.text(st.characters(exclude_categories=()), max_size=5)
SCALARS = st.none() | st.booleans() | NUMBERS | st.integers() | TEXTS
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=6
)


def documents(objects: st.SearchStrategy[Any]) -> st.SearchStrategy[bytes]:
    """JSON of these objects: whole, with bytes cut off or changed, nested too deep; or any bytes."""
    whole = objects.map(lambda value: json.dumps(value).encode())
    cut = st.tuples(whole, st.integers(0, 400)).map(lambda pair: pair[0][: pair[1]])
    changed = st.tuples(whole, st.integers(0, 400), st.binary(max_size=4)).map(
        lambda three: three[0][: three[1]] + three[2] + three[0][three[1] :]
    )
    deep = st.sampled_from([b"[" * 5_000, b'{"a":' * 5_000, b"1" * 10_000, b'{"seed": ' + b"9" * 5000 + b"}"])
    return whole | whole | whole | cut | changed | deep | st.binary(max_size=40)


def altered(valid: dict[str, Any], names: st.SearchStrategy[str] = TEXTS) -> st.SearchStrategy[Any]:
    """A valid object with some values replaced, some keys gone and some new; or another value altogether."""
    replaced = st.dictionaries(st.sampled_from(sorted(valid)) | names, VALUES, max_size=3)
    gone = st.sets(st.sampled_from(sorted(valid)), max_size=2)
    objects = st.tuples(replaced, gone).map(
        lambda pair: {name: value for name, value in {**valid, **pair[0]}.items() if name not in pair[1]}
    )
    return objects | objects | objects | VALUES


def argument_files() -> tuple[st.SearchStrategy[bytes], Callable[[bytes, Path], None]]:
    """Argument files; what reads them is `parse_arguments`."""
    from softlaunch.arguments import parse_arguments
    from softlaunch.arguments.old_names import current_options, idle_names, old_names

    valid = {"model_name_or_path": "base", "do_train": True, "train_file": "a.json", "prompt_column": "a"}
    valid |= {"response_column": "b", "output_dir": "out", "use_cpu": True, "report_to": "none"}
    # They would choose devices or begin to talk to other processes
    names = sorted({*current_options(), *idle_names(), *old_names()} - {"local_rank", "ddp_backend", "tpu_num_cores"})

    def read(content: bytes, directory: Path) -> None:
        file = directory / "run.json"
        file.write_bytes(content)
        parse_arguments([str(file)])

    return documents(altered(valid, st.sampled_from(names) | TEXTS)), read


def adapter_configs() -> tuple[st.SearchStrategy[tuple[str, bytes]], Callable[[tuple[str, bytes], Path], None]]:
    """`adapter_config.json` of LoRA, of a prefix and of PEFT's prefix tuning; `load_adapter` and `softlaunch adapters`
    read them."""
    from softlaunch.adapter_files import find_adapters
    from softlaunch.tuning import load_adapter
    from tests.bases import random_base
    from tests.unit.test_methods import tuned

    made = Path(tempfile.mkdtemp())
    configs = {}
    for method in ("lora", "prefix"):
        tuned(random_base("llama"), method).save_pretrained(made / method)
        configs[method] = json.loads((made / method / "adapter_config.json").read_text())
    configs["peft"] = {"peft_type": "PREFIX_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 3}
    configs["peft"] |= {"num_layers": 2, "num_attention_heads": 2, "token_dim": 32, "base_model_name_or_path": None}
    shutil.copytree(made / "prefix", made / "peft")

    def read(case: tuple[str, bytes], directory: Path) -> None:
        kind, content = case
        adapter = directory / kind
        shutil.copytree(made / kind, adapter)
        (adapter / "adapter_config.json").write_bytes(content)
        list(find_adapters(directory))
        load_adapter(random_base("llama"), adapter)

    cases = [st.tuples(st.just(kind), documents(altered(config))) for kind, config in configs.items()]
    return st.one_of(cases), read


def manifests() -> tuple[st.SearchStrategy[tuple[str, bytes, str]], Callable[[tuple[str, bytes, str], Path], None]]:
    """A checkpoint's manifest and the run's `run.json`, and perhaps a file that is gone; a second start reads them."""
    from transformers import TrainerState

    from softlaunch.arguments import parse_arguments
    from softlaunch.training.checkpoint import checkpoint_to_resume
    from softlaunch.training.manifest import read_manifest, write_manifest
    from softlaunch.training.run_state import find_run, read_run, take_run

    made = Path(tempfile.mkdtemp())
    (made / "base").mkdir()
    (made / "base" / "config.json").write_text("{}")
    (made / "train.json").write_text("{}")
    words = ["--model_name_or_path", str(made / "base"), "--train_file", str(made / "train.json"), "--do_train"]
    words += ["--prompt_column", "a", "--response_column", "b", "--pre_seq_len", "4", "--use_cpu"]

    def arguments(directory: Path) -> Any:
        return parse_arguments([*words, "--output_dir", str(directory / "run")])

    first = arguments(made)
    take_run(made / "run", find_run(first))
    checkpoint = made / "run" / "checkpoint-2"
    checkpoint.mkdir()
    needed = ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth")
    for name in needed:
        (checkpoint / name).write_bytes(b"state")
    TrainerState().save_to_json(str(checkpoint / "trainer_state.json"))
    run = read_run(made / "run")
    write_manifest(checkpoint, {"step": 2, "world_size": 1, "run_id": run["id"], "run": run})
    valid = {"run.json": run, "checkpoint-2/manifest.json": json.loads((checkpoint / "manifest.json").read_text())}

    def read(case: tuple[str, bytes, str], directory: Path) -> None:
        name, content, gone = case
        shutil.copytree(made / "run", directory / "run")
        (directory / "run" / name).write_bytes(content)
        (directory / "run" / "checkpoint-2" / gone).unlink(missing_ok=True)
        left = find_run(arguments(directory))
        found = checkpoint_to_resume(left.training, str(left.run["id"]))
        if found is not None:
            TrainerState.load_from_json(f"{found}/trainer_state.json")
            only_model = read_manifest(Path(found)).get("only_model") is True
            assert only_model or all((Path(found) / name).is_file() for name in needed)

    names = st.sampled_from(["files", "version", "run_id", "world_size", "finished", "earlier", "../x", "/etc/passwd"])
    gone = st.sampled_from(["nothing", *needed, "trainer_state.json"])
    cases = [st.tuples(st.just(name), documents(altered(content, names)), gone) for name, content in valid.items()]
    return st.one_of(cases), read


def recipe_starts() -> tuple[st.SearchStrategy[tuple[str, bytes]], Callable[[tuple[str, bytes], Path], None]]:
    """The base's `config.json`, and `adapter_config.json` of an adapter to go on with; a recipe reads them, and all
    else that it does before it reads weights."""
    from softlaunch import models, preemption
    from tests.bases import random_base
    from tests.faults.driver import RECIPE, arguments, write_rows
    from tests.unit.test_methods import tuned

    class LoadedError(Exception):
        """The weights would be read now."""

    def load_base(_: object) -> None:
        raise LoadedError

    made = Path(tempfile.mkdtemp())
    write_rows(made)
    base = DEMO / "base"
    recipes = {"prefix": "ptuning_chatglm.py", "lora": "lora_chatglm.py"}
    configs = {}
    for method in recipes:
        tuned(random_base("llama"), method).save_pretrained(made / method)
        configs[method] = json.loads((made / method / "adapter_config.json").read_text())
    configs["base"] = json.loads((base / "config.json").read_text())

    def read(case: tuple[str, bytes], directory: Path) -> None:
        kind, content = case
        shutil.copytree(base, directory / "base", copy_function=os.symlink)
        changes: dict[str, Any] = {"model_name_or_path": directory / "base", "use_cpu": True}
        changes |= {f"{name}_file": made / f"{name}.json" for name in ("train", "test")}
        if kind == "base":
            file = directory / "base" / "config.json"
            file.unlink()
        else:
            changes |= {"adapter": shutil.copytree(made / kind, directory / kind), "pre_seq_len": None}
            changes |= {"prefix_dropout": None}
            file = directory / kind / "adapter_config.json"
        file.write_bytes(content)
        changes["validation_file"] = changes["test_file"]
        recipe = recipes.get(kind, RECIPE.name)
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
        with (
            patch.object(sys, "argv", [recipe, *arguments(directory, **changes)]),
            patch.object(models, "load_base", load_base),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            contextlib.suppress(LoadedError),
        ):
            try:
                runpy.run_path(str(RECIPE.with_name(recipe)))["main"]()
            finally:
                preemption._state.__init__()  # type: ignore[misc]
                for number, handler in handlers.items():
                    signal.signal(number, handler)

    cases = [st.tuples(st.just(kind), documents(altered(config))) for kind, config in configs.items()]
    return st.one_of(cases), read


def data_rows() -> tuple[st.SearchStrategy[tuple[str, bytes]], Callable[[tuple[str, bytes], Path], None]]:
    """Files of rows of every kind; `read_rows` reads them, as they are and with `skip_bad_rows`."""
    from softlaunch.data.read import read_rows

    rows = st.lists(altered({"prompt": "a", "response": "b", "history": [["a", "b"]]}), max_size=4)
    lines = rows.map(lambda found: "\n".join(map(json.dumps, found)).encode())
    cells = st.lists(st.lists(TEXTS, max_size=4), max_size=4)
    table = cells.map(
        lambda found: "\n".join(["prompt,response,history", *(",".join(row) for row in found)]).encode(
            errors="surrogatepass"
        )
    )
    contents = lines | documents(rows) | table | table.map(lambda text: b"PAR1" + text + b"PAR1")
    suffixes = st.sampled_from([".json", ".jsonl", ".csv", ".tsv", ".parquet", ""])

    def read(case: tuple[str, bytes], directory: Path) -> None:
        suffix, content = case
        file = directory / f"rows{suffix}"
        file.write_bytes(content)
        columns = {"prompt_column": "prompt", "response_column": "response", "cache_dir": directory, "num_workers": 1}
        for options in ({}, {"history_column": "history", "skip_bad_rows": True}):
            with contextlib.suppress(UserError):
                read_rows(file, **columns, **options)

    return st.tuples(suffixes, contents), read


def runs() -> tuple[st.SearchStrategy[tuple[str, bytes]], Callable[[tuple[str, bytes], Path], None]]:
    """The files of a run; `softlaunch status` reads them."""
    from softlaunch.commands.status import run

    training = {"do_train": True, "num_train_epochs": 2.0, "max_steps": -1, "do_predict": True}
    line = {"step": 3, "time": 5.0, "loss": 2.0, "epoch": 0.5, "tokens_per_second": 9.0}
    valid = {
        "record.json": {"arguments": {"training": training}, "starts": ["a"]},
        "metrics.jsonl": line,
        "run.json": {"id": "a", "finished": False},
        "train_results.json": {"train_tokens_per_second": 9.0},
        "predict_results.json": {"predict_bleu-4": 9.0},
        ".lock": {"process": 1, "host": platform.node()},
        "checkpoint-2/manifest.json": {"files": {"a": {"size": 0}}, "run_id": "a"},
    }

    def read(case: tuple[str, bytes], directory: Path) -> None:
        for folder in ("checkpoint-2", "checkpoint-²", "checkpoint-x"):
            (directory / folder).mkdir()
        for name, content in valid.items():
            (directory / name).write_text(json.dumps(content) + "\n")
        name, content = case
        with (directory / name).open("ab" if name == "metrics.jsonl" else "wb") as file:
            file.write(content)
        for as_json in (False, True):
            with contextlib.redirect_stdout(io.StringIO()):
                run(argparse.Namespace(runs=[str(directory)], json=as_json))

    cases = [st.tuples(st.just(name), documents(altered(content))) for name, content in valid.items()]
    inner = altered(training).map(lambda found: {"arguments": {"training": found}})
    files = altered(valid["checkpoint-2/manifest.json"]["files"]).map(lambda found: {"files": found})
    cases += [st.tuples(st.just("record.json"), documents(inner))]
    cases += [st.tuples(st.just("checkpoint-2/manifest.json"), documents(files))]
    return st.one_of(cases), read


def plans() -> tuple[st.SearchStrategy[tuple[str, bytes]], Callable[[tuple[str, bytes], Path], None]]:
    """Argument files, a base's and an adapter's configuration; `softlaunch plan` reads them."""
    from softlaunch.commands.plan import add_arguments, run
    from softlaunch.launching.settings import RunSettings

    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape |= {"vocab_size": 9, "max_position_embeddings": 9, "id2label": {"0": "a"}}
    options = {"do_train": True, "lora_r": 4, "train_file": "a.json", "do_eval": True, "max_source_length": 8}
    options |= {"num_train_epochs": 3.0, "lora_target_modules": ["q_proj"], "save_steps": 2}
    lora = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"]}
    prefix = {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 3}
    names = st.sampled_from(sorted(RunSettings.__dataclass_fields__.keys() - {"model_name_or_path"}))
    known = st.sampled_from(sorted({*shape, "num_key_value_heads", "head_dim", "model_type"}))
    cases = [st.tuples(st.just("run.json"), documents(altered(options, names)))]
    for kind in ("glm", "llama", "bert"):
        cases.append(st.tuples(st.just("base/config.json"), documents(altered({"model_type": kind, **shape}, known))))
    cases += [st.tuples(st.just("adapter/adapter_config.json"), documents(altered(c))) for c in (lora, prefix)]

    def read(case: tuple[str, bytes], directory: Path) -> None:
        name, content = case
        for folder in ("base", "adapter"):
            (directory / folder).mkdir()
        (directory / "run.json").write_text(json.dumps(options))
        (directory / "base" / "config.json").write_text(json.dumps({"model_type": "llama", **shape}))
        (directory / name).write_bytes(content)
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        arguments = parser.parse_args([str(directory / "run.json")])
        arguments.overrides = ["--model_name_or_path", str(directory / "base"), "--adapter", str(directory / "adapter")]
        with contextlib.redirect_stdout(io.StringIO()):
            run(arguments)

    return st.one_of(cases), read


KINDS = {
    "argument files": argument_files,
    "adapter configs": adapter_configs,
    "manifests": manifests,
    "recipe starts": recipe_starts,
    "data rows": data_rows,
    "runs": runs,
    "plans": plans,
}


@cache
def kind(name: str) -> tuple[st.SearchStrategy, Callable[[Any, Path], None]]:
    """The cases of a kind, and what reads one in an empty directory."""
    return KINDS[name]()


def check(name: str, num_cases: int) -> None:
    """Raises what the first case raises that does not end as it should, with the case made small."""
    cases, read = kind(name)

    @settings(
        max_examples=num_cases,
        deadline=None,
        database=None,
        derandomize=num_cases < 1000,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(cases)
    def ends_well(case: Any) -> None:
        with tempfile.TemporaryDirectory() as directory, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            message = "-"
            try:
                read(case, Path(directory))
            except UserError as error:
                message = str(error)
            assert message.strip()

    ends_well()


def main() -> None:
    """As many cases as were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    options = parser.parse_args()
    logging.disable()
    for name in options.kinds:
        num_cases = options.cases // len(options.kinds)
        check(name, num_cases)
        sys.stdout.write(f"{name}: {num_cases:,} cases, each worked or ended in a clear error\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()

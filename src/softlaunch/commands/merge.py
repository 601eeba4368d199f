"""`softlaunch merge`: a LoRA or IA3 adapter into its base model, checked on real rows."""

import argparse
import logging
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softlaunch.errors import ArgumentError, CheckpointError
from softlaunch.files import sha256, write_json
from softlaunch.messages import say
from softlaunch.new_directory import new_directory, require_absent
from softlaunch.run_directory import MERGE_FILE, WEIGHTS_FILE, adapter_directory, base_of, read_record

if TYPE_CHECKING:
    from softlaunch.evaluation.same_logits import Comparison, Logits

logger = logging.getLogger(__name__)

# Share of what the adapter changes that merging may change: rounding to 16 bits blurs small updates
TOLERANCES = {"float32": 0.001, "float16": 0.05, "bfloat16": 0.25}
_NEGLIGIBLE = 1e-6  # of the spread of the logits: an adapter that changes nothing, and float32 rounding

_DESCRIPTION = """\
The merged model is an ordinary one: transformers, vLLM and others load it without knowing of the adapter. After a run
on a 4- or 8-bit base the adapter goes into the base's 16-bit weights.

Before anything is written, the logits of the merged model are compared with those of base + adapter (both in the
precision that is written) on 8 rows of the run's data; where there are none, on built-in texts. The difference may be
0.1 % of what the adapter changes in float32, 5 % in float16 and 25 % in bfloat16, or what --tolerance says. What was
written is loaded again and compared likewise. OUT is written whole or not at all."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = f"{parser.description}\n\n{_DESCRIPTION}"
    parser.add_argument("source", metavar="RUN", type=Path, help="a run's output directory, or an adapter's")
    parser.add_argument("target", metavar="OUT", type=Path, help="the directory to make; it must not exist")
    parser.add_argument("--base", help="the base model, if it is not where the run says")
    parser.add_argument(
        "--layout",
        choices=("glm", "chatglm"),
        help="of a ChatGLM2, ChatGLM3 or GLM-4: glm is transformers' layout (default), chatglm the released one",
    )
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", *TOLERANCES),
        help="of the base and of what is written; auto is what the base is stored in",
    )
    parser.add_argument("--device", default="cpu", help="where to compute: cpu (default), cuda, cuda:1, …")
    parser.add_argument("--tolerance", type=float, help="see above; 0.1 is 10 %% of what the adapter changes")


def run(arguments: argparse.Namespace) -> None:
    """Merge. Raises CheckpointError for what cannot be merged, or not within the tolerance."""
    require_absent(arguments.target)
    adapter = adapter_directory(arguments.source)
    from softlaunch.tuning.merge import require_mergeable

    require_mergeable(adapter)
    base = arguments.base or base_of(adapter)
    if base is None:
        raise CheckpointError("{path} does not say what its base is; give it with --base", path=adapter)
    _merge(adapter, base, arguments)


def _merge(adapter: Path, base: str, arguments: argparse.Namespace) -> None:
    import torch

    from softlaunch.evaluation.same_logits import logits_of, rows_of_run
    from softlaunch.models import load_model, load_tokenizer
    from softlaunch.models.load import read_config
    from softlaunch.models.save import require_chatglm, save_model, stored_dtype
    from softlaunch.tuning import load_adapter

    if arguments.layout is not None:
        require_chatglm(read_config(base)["model_type"])
    try:
        torch.empty(0, device=arguments.device)
    except (RuntimeError, AssertionError) as error:
        raise ArgumentError("--device {device}: {error}", device=arguments.device, error=error) from error
    dtype = stored_dtype(base) if arguments.dtype == "auto" else arguments.dtype
    load = partial(load_model, dtype=getattr(torch, dtype))
    record = read_record(adapter)
    _say_plan(adapter, base, dtype, record)

    tuned: Any = load_adapter(load(base).to(arguments.device), adapter).eval()  # stops if it is for another base
    rows, file = rows_of_run(record, load_tokenizer(base))
    if file is None:
        logger.info("%s", say("The files of the run's rows are not here: compared are built-in texts."))
    with tuned.disable_adapter():
        without = logits_of(tuned, rows)
    adapted = logits_of(tuned, rows)
    try:
        model = tuned.merge_and_unload(safe_merge=True)
    except ValueError as error:  # weights that are not finite, layers that PEFT cannot merge
        raise CheckpointError("{path} cannot be merged: {error}", path=adapter, error=error) from error
    check = partial(_check, without, adapted, TOLERANCES[dtype] if arguments.tolerance is None else arguments.tolerance)
    comparison, line = check(logits_of(model, rows))
    logger.info("%s", line)
    num_bytes = sum(parameter.nbytes for parameter in model.parameters())
    with new_directory(arguments.target, num_bytes=num_bytes) as directory:
        notes = save_model(model, base, directory, arguments.layout)
        del model, tuned  # one copy in memory at a time
        check(logits_of(load(str(directory)).to(arguments.device), rows))
        _write_record(directory, adapter, base, dtype, file, comparison)
    for note in notes:
        logger.info("%s", note)
    logger.info(
        "%s", say("{target} is written; loaded from there, the model computes the same", target=arguments.target)
    )


def _say_plan(adapter: Path, base: str, dtype: str, record: dict[str, Any]) -> None:
    logger.info("%s", say("{adapter} goes into {base}, in {dtype}", adapter=adapter, base=base, dtype=dtype))
    bits = record.get("arguments", {}).get("model", {}).get("quantization_bit")
    if bits is not None:
        logger.info(
            "%s",
            say(
                "It was trained on this base in {bits} bits. On the weights of {dtype} it answers a little "
                "differently; that is what the merged model is compared with.",
                bits=bits,
                dtype=dtype,
            ),
        )


def _check(without: "Logits", adapted: "Logits", tolerance: float, merged: "Logits") -> tuple["Comparison", str]:
    """How the merged model compares, and a line about it. Raises CheckpointError beyond `tolerance`."""
    from softlaunch.evaluation.same_logits import compare

    found = compare(without, adapted, merged)
    share = found.difference / max(found.effect, _NEGLIGIBLE)
    values: dict[str, Any] = {
        "num_rows": len(merged),
        "effect": found.effect,
        "share": share,
        "tolerance": tolerance,
        "same": found.same_tokens,
        "total": found.num_tokens,
        "largest": found.largest,
    }
    if not found.difference <= max(tolerance * found.effect, _NEGLIGIBLE):  # not a number: also refused
        raise CheckpointError(
            "merging changes what the model computes: its logits differ from those of base + adapter by {share:.2%} of "
            "what the adapter changes (at most {largest:.2g}), allowed are {tolerance:.1%}; the likeliest token is the "
            "same at {same} of {total} places. Nothing was written. Merge with --dtype float32, or allow more with "
            "--tolerance.",
            **values,
        )
    line = say(
        "{num_rows} rows: the merged logits differ from those of base + adapter by {share:.2%} of what the adapter "
        "changes (at most {largest:.2g}), allowed are {tolerance:.1%}; the likeliest token is the same at {same} of "
        "{total} places",
        **values,
    )
    return found, line


def _write_record(
    directory: Path, adapter: Path, base: str, dtype: str, file: str | None, comparison: "Comparison"
) -> None:
    weights = adapter / WEIGHTS_FILE
    digest = sha256(weights) if weights.is_file() else None  # older adapters of PEFT have a .bin
    content = {
        "adapter": str(adapter),
        "adapter_sha256": digest,
        "base": base,
        "dtype": dtype,
        "rows": file,
        **asdict(comparison),
    }
    write_json(directory / MERGE_FILE, content)

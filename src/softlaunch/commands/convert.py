"""`softlaunch convert`: models and adapters for other programs, and back."""

import argparse
import logging
from pathlib import Path
from typing import Any

from softlaunch.errors import CheckpointError
from softlaunch.messages import say
from softlaunch.new_directory import new_directory, require_absent
from softlaunch.run_directory import CONFIG_FILE, adapter_directory, base_of, find_adapter, read_json

logger = logging.getLogger(__name__)

_LAYOUTS = ("glm", "chatglm")
_FORMATS = ("peft", "thudm-prefix", "softlaunch")
_DESCRIPTION = """\
What IN is, is found out.

a model   glm           transformers' layout of ChatGLM2, ChatGLM3 and GLM-4; vLLM and, for GLM-4, llama.cpp read it too
          chatglm       the layout that they are released in, and that the original code reads
a LoRA    glm, chatglm  for a base in that layout: query_key_value is q_proj, k_proj and v_proj (IA3 likewise)
a prefix  peft          PEFT's PREFIX_TUNING
          thudm-prefix  pytorch_model.bin of the original P-Tuning v2 scripts
          softlaunch    what a run leaves in adapter/

A model is converted file by file, in the memory that one of its files takes. OUT is written whole or not at all."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = f"{parser.description}\n\n{_DESCRIPTION}"
    parser.add_argument("source", metavar="IN", type=Path, help="a model, an adapter, or a run with an adapter in it")
    parser.add_argument("target", metavar="OUT", type=Path, help="the directory to make; it must not exist")
    parser.add_argument("--to", required=True, choices=(*_LAYOUTS, *_FORMATS), help="what OUT is to be, see above")
    parser.add_argument("--base", help="of an adapter: its base model, if it is not where the adapter says")
    parser.add_argument(
        "--drop_prefix",
        action="store_true",
        help="of a model: leave out a P-Tuning v2 prefix that the original scripts saved with it",
    )


def run(arguments: argparse.Namespace) -> None:
    """Convert `source` into `target`. Raises CheckpointError for what cannot be, or not without loss."""
    require_absent(arguments.target)
    is_adapter = not (arguments.source / "config.json").is_file() and find_adapter(arguments.source) is not None
    if arguments.to in _LAYOUTS and is_adapter:
        notes = _convert_layers(arguments.source, arguments.target, arguments.to, arguments.base)
    elif arguments.to in _LAYOUTS:
        notes = _convert_model(arguments.source, arguments.target, arguments.to, arguments.drop_prefix)
    else:
        notes = _convert_adapter(arguments.source, arguments.target, arguments.to, arguments.base)
    for note in notes:
        logger.info("%s", note)
    logger.info("%s", say("{target} is written, as {to}", target=arguments.target, to=arguments.to))


def _convert_model(source: Path, target: Path, to: Any, drop_prefix: bool) -> list[str]:
    from softlaunch.models.convert import plan_conversion

    conversion = plan_conversion(source, to, drop_prefix=drop_prefix)
    with new_directory(target, num_bytes=conversion.num_bytes) as directory:
        conversion.write(directory)
    return conversion.notes


def _convert_layers(source: Path, target: Path, to: Any, base: str | None) -> list[str]:
    adapter = adapter_directory(source)
    kind = read_json(adapter / CONFIG_FILE).get("peft_type") if (adapter / CONFIG_FILE).is_file() else None
    if kind not in ("LORA", "IA3"):
        raise CheckpointError(
            "{path} is an adapter without layers; {to} is a layout of models, and of LoRA and IA3 adapters. Convert a "
            "prefix to one of {formats}",
            path=source,
            to=to,
            formats=", ".join(_FORMATS),
        )
    model = _skeleton(adapter, base)
    if model.config.model_type != "glm":
        raise CheckpointError(
            "{path}: model_type is {kind!r}; the layouts glm and chatglm are for ChatGLM2, ChatGLM3 and GLM-4 only",
            path=base or base_of(adapter),
            kind=model.config.model_type,
        )
    from softlaunch.tuning.released import convert_layers

    with new_directory(target) as directory:
        return convert_layers(model.config, adapter, directory, to)


def _convert_adapter(source: Path, target: Path, to: Any, base: str | None) -> list[str]:
    adapter = adapter_directory(source)
    _require_other_format(adapter, to)
    model = _skeleton(adapter, base)
    from softlaunch.tuning.convert import convert_prefix

    with new_directory(target) as directory:
        return convert_prefix(model, adapter, directory, to)


def _skeleton(adapter: Path, base: str | None) -> Any:
    """The base without its weights: the one that is given, or where the adapter says."""
    base = base or base_of(adapter)
    if base is None:
        raise CheckpointError("{path} does not say what its base is; give it with --base", path=adapter)
    from softlaunch.models.load import load_skeleton

    return load_skeleton(base)


def _require_other_format(adapter: Path, to: str) -> None:
    if not (adapter / CONFIG_FILE).is_file():
        found = "thudm-prefix"
    else:
        kind = read_json(adapter / CONFIG_FILE).get("peft_type")
        found = {"P_TUNING_V2": "softlaunch", "PREFIX_TUNING": "peft"}.get(str(kind), "")
        if not found:
            raise CheckpointError(
                "{path}: this is a {kind} adapter. It is in PEFT's own format already, which Softlaunch reads and "
                "writes; it holds no keys and values of a prefix, so it cannot become {to}. For a base in the other "
                "layout of ChatGLM it can become glm or chatglm.",
                path=adapter,
                kind=kind,
                to=to,
            )
    if found == to:
        raise CheckpointError("{path} has the format {to} already; there is nothing to convert", path=adapter, to=to)

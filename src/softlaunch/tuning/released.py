"""LoRA and IA3 adapters of the released ChatGLM2, ChatGLM3 and GLM-4 code, and of transformers' GLM.

The network is the same, so is what an adapter computes. Layers have other names, and `query_key_value` of the release
is q, k and v, one below the other:

    to glm       the three take its A, and their rows of its B
    to chatglm   their As lie one below the other, their Bs on a diagonal: rank 3 r, alpha 3 lora_alpha. Where the three
                 have the same A, as after `to glm`, it stays one of rank r
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, cast

import torch
from peft import PeftModel
from peft.utils.save_and_load import load_peft_weights
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import GlmConfig, PreTrainedModel

from softlaunch.errors import CheckpointError
from softlaunch.files import write_json
from softlaunch.layer_names import counterparts, projection_sizes
from softlaunch.messages import say
from softlaunch.run_directory import BASE_FILE, CONFIG_FILE, WEIGHTS_FILE
from softlaunch.tuning.adapter_model import does_not_fit

Layout = Literal["glm", "chatglm"]
Tensors = dict[str, torch.Tensor]

_START = "base_model.model."
LAYERED = ("LORA", "IA3")  # the kinds of adapters that sit in layers
_FUSED, _PARTS = "query_key_value", ("q_proj", "k_proj", "v_proj")


@contextmanager
def in_layout_of(model: PreTrainedModel | PeftModel, directory: Path) -> Iterator[Path]:
    """Yields `directory`, a LoRA or IA3 adapter's, or where it has the layers of the released code and `model` those of
    transformers' GLM, one with the same adapter for these, which exists inside only.
    """
    try:
        fits = model.config.model_type != "glm" or _layout(_read(directory)) == "glm"
    except CheckpointError:  # the loader tells what is wrong with it, after it has compared the bases
        fits = True
    if fits:
        yield directory
        return
    with TemporaryDirectory(prefix=f"{directory.name}-") as converted:
        convert_layers(cast(Any, model.config), directory, Path(converted), "glm")
        yield Path(converted)


def convert_layers(config: GlmConfig, source: Path, target: Path, to: Layout) -> list[str]:
    """Write the LoRA or IA3 adapter in `source` into the existing directory `target`, for the other layout of its base,
    of which `config` is. Returns notes on what has become otherwise.

    Raises CheckpointError when it is in that layout already, does not fit the base, or would not compute the same.
    """
    written, tensors = json.loads((source / CONFIG_FILE).read_text(encoding="utf-8")), _read(source)
    if _layout(tensors) == to:
        raise CheckpointError(
            "{path} is in the layout {layout} already; there is nothing to convert", path=source, layout=to
        )
    if written.get("bias", "none") != "none" or (written.get("peft_type") not in LAYERED):
        raise CheckpointError(
            "{path}: only LoRA and IA3 adapters without trained biases have a counterpart in the other layout",
            path=source,
        )
    layers = _by_layer(tensors, source)
    pairs = {
        released.removesuffix(".weight"): tuple(name.removesuffix(".weight") for name in ours)
        for released, ours in counterparts(config).items()
        if released.endswith(".weight")
    }
    known = set(pairs) if to == "glm" else {name for ours in pairs.values() for name in ours}
    if unknown := sorted(layers.keys() - known):
        raise CheckpointError(
            "{path}: {number} layers have no place in the target and would be lost: {names}",
            path=source,
            number=len(unknown),
            names=", ".join(unknown[:5]),
        )
    sizes = projection_sizes(config)
    stacked = to == "chatglm" and _must_stack(layers, pairs)
    patterns = _patterns(written, to, stacked, source) if written["peft_type"] == "LORA" else {}
    try:
        converted = _split(layers, pairs, sizes) if to == "glm" else _fuse(layers, pairs, sizes, stacked, source)
    except RuntimeError as error:  # sizes that are those of another base
        raise does_not_fit(source, error) from error
    targets = _targets(converted, config.num_hidden_layers, written["peft_type"])
    _write(target, {**written, **targets, **patterns, "auto_mapping": None}, converted)
    if (source / BASE_FILE).is_file():
        (target / BASE_FILE).write_bytes((source / BASE_FILE).read_bytes())
    return [
        say("q, k and v were trained apart; in query_key_value they are one update of three times the rank.")
    ] * stacked


def _split(layers: Mapping[str, Tensors], pairs: Mapping[str, Sequence[str]], sizes: list[int]) -> dict[str, Tensors]:
    converted: dict[str, Tensors] = {}
    for released, found in layers.items():
        ours = pairs[released]
        for index, name in enumerate(ours):
            whole = len(ours) == 1
            converted[name] = {
                k: v if whole or _of_inputs(k, v) else v.split(sizes)[index].contiguous() for k, v in found.items()
            }
    return converted


def _fuse(
    layers: Mapping[str, Tensors], pairs: Mapping[str, Sequence[str]], sizes: list[int], stacked: bool, source: Path
) -> dict[str, Tensors]:
    converted: dict[str, Tensors] = {}
    for released, ours in pairs.items():
        parts = [layers.get(name) for name in ours]
        if not any(parts):
            continue
        if len(parts) == 1:
            converted[released] = layers[ours[0]]
            continue
        kinds = {kind for part in parts if part for kind in part}
        if not all(parts) and not kinds <= {"lora_A.weight", "lora_B.weight", "ia3_l"}:
            raise CheckpointError(
                "{path}: of {names} some are trained and some are not; with {kinds} that has no counterpart in "
                "query_key_value",
                path=source,
                names=", ".join(ours),
                kinds=", ".join(sorted(kinds)),
            )
        converted[released] = {kind: _fused(kind, parts, sizes, stacked) for kind in sorted(kinds)}
    return converted


def _fused(kind: str, parts: Sequence[Tensors | None], sizes: list[int], stacked: bool) -> torch.Tensor:
    """One tensor of `query_key_value` from those of q, k and v; a part that is not trained changes nothing."""
    some = next(part[kind] for part in parts if part)
    if kind == "lora_A.weight":
        blank = torch.zeros_like(some)
        return torch.cat([part[kind] if part else blank for part in parts]) if stacked else some
    if _of_inputs(kind, some):
        return some
    neutral = torch.full_like(some[:1], kind == "ia3_l")  # IA3 multiplies, LoRA adds
    # `expand` also refuses what has another size
    whole = [
        (part[kind] if part else neutral).expand(size, *some.shape[1:]) for part, size in zip(parts, sizes, strict=True)
    ]
    if kind == "lora_B.weight" and stacked:
        return torch.block_diag(*whole).to(some.dtype)
    return torch.cat(whole)


def _must_stack(layers: Mapping[str, Tensors], pairs: Mapping[str, Sequence[str]]) -> bool:
    """Whether q, k and v of some layer do not have the same A."""
    for ours in pairs.values():
        found = [layers.get(name, {}).get("lora_A.weight") for name in ours] if len(ours) == 3 else []
        there = [tensor for tensor in found if tensor is not None]
        if there and not all(torch.equal(tensor, there[0]) for tensor in there):
            return True
    return False


def _of_inputs(kind: str, tensor: torch.Tensor) -> bool:
    """Whether q, k and v, which have the same inputs, have this tensor in common: the rest has a row per output."""
    return kind == "lora_A.weight" or (kind == "ia3_l" and tensor.shape[0] == 1)


def _patterns(written: dict[str, Any], to: Layout, stacked: bool, source: Path) -> dict[str, Any]:
    """`rank_pattern` and `alpha_pattern`: what differs from `r` and `lora_alpha`, by names of layers."""
    patterns = {}
    for key, default in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha")):
        given = written.get(key) or {}
        names = {_FUSED} if to == "glm" else set(_PARTS)
        if given and (given.keys() != names or len(set(given.values())) > 1):
            raise CheckpointError(
                "{path}: {key} for {names} has no counterpart in the other layout",
                path=source,
                key=key,
                names=", ".join(sorted(given)),
            )
        value = next(iter(given.values()), written[default])
        if stacked:  # lora_alpha is divided by the rank, in rsLoRA by its square root
            value = value * (math.sqrt(3) if default == "lora_alpha" and written.get("use_rslora") else 3)
        patterns[key] = dict.fromkeys(_PARTS if to == "glm" else (_FUSED,), value) if given or stacked else {}
    return patterns


def _targets(layers: Mapping[str, Tensors], num_layers: int, kind: str) -> dict[str, Any]:
    """What PEFT's configuration says of the layers: names where all layers have them, else whole paths."""
    adapted = [path for path, found in layers.items() if not _is_whole(found)]
    per_layer = [path for path in adapted if ".layers." in path]
    names = {path.rpartition(".")[2] for path in per_layer}
    everywhere = len(per_layer) == len(names) * num_layers
    outside = [path for path in adapted if ".layers." not in path]
    named = sorted(names if everywhere else per_layer) + outside
    inputs = [path for path in adapted if kind == "IA3" and _of_inputs("ia3_l", layers[path]["ia3_l"])]
    feedforward = sorted({path.rpartition(".")[2] for path in inputs} if everywhere else inputs)
    return {
        "target_modules": named,
        "modules_to_save": sorted(path for path, found in layers.items() if _is_whole(found)) or None,
        **({"feedforward_modules": feedforward} if kind == "IA3" else {"layers_to_transform": None}),
        **({} if kind == "IA3" else {"layers_pattern": None}),
        "exclude_modules": None,
    }


def _is_whole(found: Tensors) -> bool:
    """Whether the layer itself was trained (`modules_to_save`)."""
    return "weight" in found


def _layout(tensors: Tensors) -> Layout:
    return "chatglm" if any(name.startswith(f"{_START}transformer.") for name in tensors) else "glm"


def _by_layer(tensors: Tensors, source: Path) -> dict[str, Tensors]:
    layers: dict[str, Tensors] = {}
    for name, tensor in tensors.items():
        path = name.removeprefix(_START)
        for mark in (".lora_", ".ia3_l"):
            layer, found, _ = path.partition(mark)
            if found:
                break
        else:
            layer = path.rpartition(".")[0]
        layers.setdefault(layer, {})[path.removeprefix(f"{layer}.")] = tensor
    if not layers:
        raise CheckpointError("{path}: there are no tensors in the adapter", path=source)
    return layers


def _read(directory: Path) -> Tensors:
    try:
        return load_peft_weights(str(directory), device="cpu")
    except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
        raise does_not_fit(directory, error) from error


def _write(target: Path, config: dict[str, Any], layers: Mapping[str, Tensors]) -> None:
    tensors = {f"{_START}{path}.{kind}": tensor for path, found in layers.items() for kind, tensor in found.items()}
    # q, k and v have the same A: a file holds it three times
    save_file({k: v.clone() for k, v in tensors.items()}, target / WEIGHTS_FILE, metadata={"format": "pt"})
    write_json(target / CONFIG_FILE, config)

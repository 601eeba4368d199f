"""A model directory into the other layout, file by file.

Every file of the source becomes one of the target. It is mapped, not read, and what is written points into the mapping:
a conversion takes the memory of about one file, most of it pages that the system can take back at any time.
"""

import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import GlmConfig, GlmForCausalLM

from softlaunch.errors import CheckpointError
from softlaunch.files import write_json
from softlaunch.layer_names import counterparts, projection_sizes
from softlaunch.models.chatglm import glm_config
from softlaunch.models.layouts import (
    ROTARY_TABLE,
    released_config,
    rotary_table,
    write_glm_config,
)
from softlaunch.models.load import read_config
from softlaunch.models.save import Layout
from softlaunch.models.tensor_files import TensorFile
from softlaunch.models.tokenizer_files import write_glm_tokenizer, write_released_tokenizer
from softlaunch.models.weight_files import INDEX_FILE, SINGLE_FILE, check_weight_files, find_weight_files

Pair = tuple[str, tuple[str, ...]]  # a released name and its one or three in transformers' layout

PREFIX = "prefix_encoder."
_OTHER_FILES = ("generation_config.json", "LICENSE", "MODEL_LICENSE")


@dataclass
class Conversion:
    """A model directory in which all tensors were found, of the right shapes; `write` puts it into the other layout.

    `files`: where each tensor is. `notes`: what the target does not hold, or still needs.
    """

    source: Path
    to: Layout
    config: GlmConfig
    files: dict[str, Path]
    notes: list[str] = field(default_factory=list)

    @property
    def num_bytes(self) -> int:
        """What the weights take on disk, before as after."""
        return sum(file.stat().st_size for file in set(self.files.values()))

    def write(self, target: Path) -> None:
        """Write the model and its tokenizer into `target`, an empty directory."""
        if self.to == "glm":
            write_glm_config(self.config, target)
            self.notes += write_glm_tokenizer(self.source, target)
        else:
            write_json(target / "config.json", released_config(self.config))
            self.notes += write_released_tokenizer(self.source, target)
        for name in _OTHER_FILES:
            if (self.source / name).is_file():
                shutil.copyfile(self.source / name, target / name)
        self._write_weights(target)

    def _write_weights(self, target: Path) -> None:
        parts = self._parts()
        index: dict[str, str] = {}
        num_bytes = 0
        for number, (file, pairs) in enumerate(parts.items(), start=1):
            name = f"model-{number:05d}-of-{len(parts):05d}.safetensors" if len(parts) > 1 else SINGLE_FILE
            tensors = self._converted(file, pairs)
            if self.to == "chatglm" and number == 1:
                tensors[ROTARY_TABLE] = rotary_table(self.config)
            save_file(tensors, target / name, metadata={"format": "pt"})
            index |= dict.fromkeys(tensors, name)
            num_bytes += sum(tensor.nbytes for tensor in tensors.values())
            del tensors  # before the next file is mapped
        if len(parts) > 1:
            write_json(target / INDEX_FILE, {"metadata": {"total_size": num_bytes}, "weight_map": index})

    def _parts(self) -> dict[Path, list[Pair]]:
        """The files of the source, and the names that go into the file that is made of each.

        q, k and v may lie in different files; fused they go where v is.
        """
        parts: dict[Path, list[Pair]] = {}
        for released, ours in counterparts(self.config).items():
            file = self.files[released if self.to == "glm" else ours[-1]]
            parts.setdefault(file, []).append((released, ours))
        return dict(sorted(parts.items()))

    def _converted(self, file: Path, pairs: list[Pair]) -> dict[str, torch.Tensor]:
        opened = {file: TensorFile(file)}

        def tensor(name: str) -> torch.Tensor:
            where = self.files[name]
            return opened.setdefault(where, opened.get(where) or TensorFile(where))[name]

        converted: dict[str, torch.Tensor] = {}
        for released, ours in pairs:
            if len(ours) == 1:
                source, target = (released, ours[0]) if self.to == "glm" else (ours[0], released)
                converted[target] = tensor(source).contiguous()
            elif self.to == "glm":
                converted |= dict(zip(ours, tensor(released).split(projection_sizes(self.config)), strict=True))
            else:
                converted[released] = torch.cat([tensor(name) for name in ours])
        return converted


def plan_conversion(source: Path, to: Layout, *, drop_prefix: bool = False) -> Conversion:
    """Look at all files of the model in `source` and plan how to put it into the layout `to`.

    Raises CheckpointError when it is in that layout already or is no ChatGLM2/3 or GLM-4 model, when tensors are
    missing or of another shape, and when some have no place in the target: the original scripts' prefix unless
    `drop_prefix`, weights that the original code quantized, or a network that only one layout can describe.
    """
    config = _glm_config(source, to)
    if to == "chatglm":
        released_config(config)  # raises for what it cannot describe
    files: dict[str, Path] = {}
    found: dict[str, tuple[int, ...]] = {}
    check_weight_files(source)
    for file in find_weight_files(source)[0]:
        shapes = TensorFile(file).shapes
        found |= shapes
        files |= dict.fromkeys(shapes, file)
    expected = _expected_shapes(config, to)
    _require_complete(source, found, expected)
    _require_no_loss(source, found.keys() - expected.keys() - {ROTARY_TABLE}, drop_prefix)
    return Conversion(source, to, config, {name: files[name] for name in expected})


def _glm_config(source: Path, to: Layout) -> GlmConfig:
    written = read_config(str(source))
    kind = written.get("model_type")
    if kind not in ("glm", "chatglm"):
        raise CheckpointError(
            "{path}: model_type is {kind!r}; the layouts glm and chatglm are for ChatGLM2, ChatGLM3 and GLM-4 only",
            path=source,
            kind=kind,
        )
    if kind == to:
        raise CheckpointError(
            "{path} is in the layout {layout} already; there is nothing to convert", path=source, layout=to
        )
    return glm_config(written, str(source)) if kind == "chatglm" else GlmConfig.from_pretrained(str(source))


def _expected_shapes(config: GlmConfig, to: Layout) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors of the source, which is in the other layout than `to`."""
    with torch.device("meta"):
        ours = {name: tuple(tensor.shape) for name, tensor in GlmForCausalLM(config).state_dict().items()}
    if to == "chatglm":
        return ours
    return {
        released: (sum(ours[name][0] for name in names), *ours[names[0]][1:])
        for released, names in counterparts(config).items()
    }


def _require_complete(source: Path, found: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]]) -> None:
    missing = sorted(expected.keys() - found.keys())
    if missing:
        raise CheckpointError(
            "{path}: {number} of {total} tensors are missing: {names}; a file may be absent, or config.json belongs to "
            "another model",
            path=source,
            number=len(missing),
            total=len(expected),
            names=", ".join(missing[:3]),
        )
    for name, shape in expected.items():
        if found[name] != shape:
            raise CheckpointError(
                "{path}: {name} has the shape {found}, by config.json it should have {expected}",
                path=source,
                name=name,
                found=found[name],
                expected=shape,
            )


def _require_no_loss(source: Path, unknown: set[str], drop_prefix: bool) -> None:
    prefix = {name for name in unknown if PREFIX in name}
    if prefix and not drop_prefix:
        raise CheckpointError(
            "{path}: beside the model there is a P-Tuning v2 prefix ({number} tensors), for which the target has no "
            "place. Save the prefix with --to softlaunch, then convert the model with --drop_prefix.",
            path=source,
            number=len(prefix),
        )
    if any(name.endswith("weight_scale") for name in unknown):
        raise CheckpointError(
            "{path}: these weights were quantized by the original code and cannot be unpacked; convert the float16 "
            "release of the model",
            path=source,
        )
    if unknown - prefix:
        raise CheckpointError(
            "{path}: {number} tensors have no place in the target and would be lost: {names}",
            path=source,
            number=len(unknown - prefix),
            names=", ".join(sorted(unknown - prefix)[:5]),
        )

"""Adapter directories: our own, the original P-Tuning v2 scripts', and PEFT's PREFIX_TUNING.

| | files | real tokens count from |
|---|---|---|
| ours | `adapter_config.json`, `adapter_model.safetensors` | 0 |
| original | `pytorch_model.bin` with `transformer.prefix_encoder.*` | 0 |
| PEFT | `adapter_config.json`, `adapter_model.safetensors` with `prompt_embeddings` | n = num_virtual_tokens |

In PEFT the prefix goes through the KV cache, so that a real query at t is turned by t + n. The same function needs the
key turned by n: (R_{t+n} q)·(R_n k) = (R_t q)·k.
"""

import io
import json
import logging
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from peft import PrefixTuningConfig
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from softlaunch.errors import CheckpointError
from softlaunch.files import write_json
from softlaunch.run_directory import CONFIG_FILE, ORIGINAL_FILE, WEIGHTS_FILE, find_adapter
from softlaunch.tuning.damage import cannot_be_read
from softlaunch.tuning.fingerprint import fingerprint, num_differences
from softlaunch.tuning.prefix_encoder import PEFT_TYPE, PrefixConfig, PrefixEncoder, kv_shape
from softlaunch.tuning.rotary import rotate_keys

logger = logging.getLogger(__name__)

_ORIGINAL_PREFIX = "transformer.prefix_encoder."


@dataclass
class SavedPrefix:
    """A prefix as it was found on disk, in our convention. `tensors`: the state dict of a `PrefixEncoder`."""

    config: PrefixConfig
    tensors: dict[str, torch.Tensor]


def read_prefix(
    model: PreTrainedModel, path: str | Path, num_virtual_tokens: int | None = None, *, check_weights: bool = True
) -> SavedPrefix:
    """Read an adapter directory of any of the three formats, or the output directory of a run that holds `adapter/`.

    `model` is the base; it turns PEFT's keys and tells the shape that the original format does not write down. Where it
    has no weights to compare with those that the prefix was made for, `check_weights` is to be false.
    Raises CheckpointError when the directory holds no prefix, a broken one, one that was made for another base, or one
    that is not `num_virtual_tokens` long.
    """
    with cannot_be_read(path):
        saved = _read(model, path)
        _check_shape(model, saved, path, num_virtual_tokens)
        if check_weights:
            _check_weights(model, saved, path)
    tokens, tensors = saved.config.num_virtual_tokens, len(saved.tensors)
    logger.info("%s: %d tensors applied, a prefix of %d virtual tokens", path, tensors, tokens)
    return saved


def check_prefix(model: PreTrainedModel, path: str | Path, num_virtual_tokens: int | None = None) -> None:
    """Raise what `read_prefix` does, as far as it can be told without the weights of `model` (see `load_skeleton`)."""
    with cannot_be_read(path):
        _check_shape(model, _read(model, path), path, num_virtual_tokens)


def is_prefix(path: str | Path) -> bool:
    """Whether `read_prefix` is the one to read, or to refuse, what is at `path`: not where PEFT has another method."""
    file = (find_adapter(Path(path)) or Path(path)) / CONFIG_FILE
    try:
        return json.loads(file.read_text(encoding="utf-8")).get("peft_type") in (PEFT_TYPE, "PREFIX_TUNING", None)
    except (OSError, ValueError, AttributeError, RecursionError):
        return True


def _read(model: PreTrainedModel, path: str | Path) -> SavedPrefix:
    directory = find_adapter(Path(path)) or Path(path)
    if not directory.is_dir():
        raise CheckpointError(
            "{path}: no such directory; give the directory that holds {config_file}", path=path, config_file=CONFIG_FILE
        )
    if (directory / CONFIG_FILE).is_file():
        return _read_adapter(model, directory)
    if (directory / ORIGINAL_FILE).is_file():
        return _read_original(model, directory)
    found = ", ".join(sorted(p.name for p in directory.iterdir())[:10]) or "nothing"
    raise CheckpointError(
        "{directory}: no adapter here ({found}); expected {config_file} with {weights_file}, or "
        "{original_file} with {original_prefix}* as the original scripts save it",
        directory=directory,
        found=found,
        config_file=CONFIG_FILE,
        weights_file=WEIGHTS_FILE,
        original_file=ORIGINAL_FILE,
        original_prefix=_ORIGINAL_PREFIX,
    )


def write_prefix(encoder_tensors: dict[str, torch.Tensor], config: PrefixConfig, directory: Path) -> None:
    """Write our own format; `encoder_tensors` is the state dict of a `PrefixEncoder`."""
    directory.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(directory))
    tensors = {f"prefix_encoder.{k}": v.detach().float().cpu().contiguous() for k, v in encoder_tensors.items()}
    save_file(tensors, directory / WEIGHTS_FILE, metadata={"format": "pt"})


def write_original(encoder: PrefixEncoder, directory: Path) -> None:
    """Write what the original ChatGLM2 P-Tuning v2 scripts load as `ptuning_checkpoint`."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {_ORIGINAL_PREFIX + k: v.detach().cpu().clone() for k, v in encoder.state_dict().items()}
    content = io.BytesIO()  # torch's own writer does not say that a disk is full
    torch.save(tensors, content)
    (directory / ORIGINAL_FILE).write_bytes(content.getbuffer())
    shape = {"pre_seq_len": encoder.config.num_virtual_tokens, "prefix_projection": encoder.config.prefix_projection}
    write_json(directory / "config.json", {"model_type": "chatglm", **shape})


@torch.no_grad()
def write_peft(model: PreTrainedModel, encoder: PrefixEncoder, directory: Path) -> None:
    """Write a PREFIX_TUNING adapter with which stock `peft.PeftModel` computes the same logits on the same base.

    A projection is computed here and saved as its result, as PEFT itself does.
    """
    directory.mkdir(parents=True, exist_ok=True)
    config, states = encoder.config, encoder().clone()
    num_tokens = config.num_virtual_tokens
    states[:, 0] = rotate_keys(model, states[:, 0], num_tokens)
    peft_config = PrefixTuningConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=config.base_model_name_or_path,
        inference_mode=True,
        num_virtual_tokens=num_tokens,
        token_dim=config.num_kv_heads * config.head_dim,
        num_transformer_submodules=1,
        num_attention_heads=config.num_kv_heads,
        num_layers=config.num_layers,
        encoder_hidden_size=config.projection_size or config.num_kv_heads * config.head_dim,
    )
    peft_config.save_pretrained(str(directory))
    table = states.permute(3, 0, 1, 2, 4).reshape(num_tokens, config.table_size).cpu().contiguous()
    save_file({"prompt_embeddings": table}, directory / WEIGHTS_FILE, metadata={"format": "pt"})


def _read_adapter(model: PreTrainedModel, directory: Path) -> SavedPrefix:
    written = json.loads((directory / CONFIG_FILE).read_text(encoding="utf-8"))
    if written.get("peft_type") == "PREFIX_TUNING":
        return _read_peft(model, directory, written)
    if written.get("peft_type") != PEFT_TYPE:
        raise CheckpointError(
            "{file}: peft_type is {peft_type!r}; this loader takes {own} and PREFIX_TUNING adapters",
            file=directory / CONFIG_FILE,
            peft_type=written.get("peft_type"),
            own=PEFT_TYPE,
        )
    known = {f.name for f in fields(PrefixConfig)}
    config = PrefixConfig(**{k: v for k, v in written.items() if k in known})
    tensors = load_file(directory / WEIGHTS_FILE)
    return SavedPrefix(config, {k.removeprefix("prefix_encoder."): v for k, v in tensors.items()})


def _read_original(model: PreTrainedModel, directory: Path) -> SavedPrefix:
    found = torch.load(directory / ORIGINAL_FILE, map_location="cpu", weights_only=True)
    tensors = {k.removeprefix(_ORIGINAL_PREFIX): v.float() for k, v in found.items() if _ORIGINAL_PREFIX in k}
    if "embedding.weight" not in tensors:
        raise CheckpointError(
            "{file}: no {original_prefix}embedding.weight among its {num_tensors} tensors; this is no P-Tuning v2 "
            "checkpoint",
            file=directory / ORIGINAL_FILE,
            original_prefix=_ORIGINAL_PREFIX,
            num_tensors=len(found),
        )
    projected = tensors.get("trans.0.weight")
    config = _config_for(model, num_virtual_tokens=len(tensors["embedding.weight"]))
    config.prefix_projection, config.projection_size = projected is not None, 0 if projected is None else len(projected)
    return SavedPrefix(config, tensors)


def _read_peft(model: PreTrainedModel, directory: Path, written: dict) -> SavedPrefix:
    table = load_file(directory / WEIGHTS_FILE)["prompt_embeddings"].float()
    config = _config_for(model, num_virtual_tokens=len(table))
    config.base_model_name_or_path, config.prefix_dropout = written.get("base_model_name_or_path"), 0.0
    found = (
        written["num_layers"],
        written["num_attention_heads"],
        written["token_dim"] // written["num_attention_heads"],
    )
    config.num_layers, config.num_kv_heads, config.head_dim = found
    if found == kv_shape(model.config):
        states = table.view(len(table), config.num_layers, 2, config.num_kv_heads, config.head_dim).permute(
            1, 2, 3, 0, 4
        )
        turned = rotate_keys(model, states[:, 0], -len(table))
        table = torch.stack([turned, states[:, 1]], dim=1).permute(3, 0, 1, 2, 4).reshape(table.shape)
    return SavedPrefix(config, {"embedding.weight": table})


def _config_for(model: PreTrainedModel, num_virtual_tokens: int) -> PrefixConfig:
    layers, kv_heads, head_dim = kv_shape(model.config)
    return PrefixConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=num_virtual_tokens,
        num_layers=layers,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
    )


def _check_shape(model: PreTrainedModel, saved: SavedPrefix, path: str | Path, num_virtual_tokens: int | None) -> None:
    config, shape = saved.config, kv_shape(model.config)
    if num_virtual_tokens is not None and config.num_virtual_tokens != num_virtual_tokens:
        raise CheckpointError(
            "{path}: the adapter has {found} virtual tokens, pre_seq_len asks for {asked}; leave pre_seq_len out "
            "or set it to {found}",
            path=path,
            found=config.num_virtual_tokens,
            asked=num_virtual_tokens,
        )
    found = (config.num_layers, config.num_kv_heads, config.head_dim)
    width = saved.tensors["embedding.weight"].shape[1]
    if found != shape or width != config.table_size:
        raise CheckpointError(
            "{path}: the adapter is for another model: expected {layers} layers × {heads} kv heads × {size}, "
            "found {found_layers} × {found_heads} × {found_size} ({width} numbers per virtual token)",
            path=path,
            layers=shape[0],
            heads=shape[1],
            size=shape[2],
            found_layers=found[0],
            found_heads=found[1],
            found_size=found[2],
            width=width,
        )


def _check_weights(model: PreTrainedModel, saved: SavedPrefix, path: str | Path) -> None:
    config = saved.config
    if not config.base_fingerprint:
        return
    differences, compared = num_differences(config.base_fingerprint, fingerprint(model))
    if differences:
        raise CheckpointError(
            "{path}: the adapter was trained on another base: expected {expected}, found {found}, whose weights "
            "differ in {differences} of {compared} numbers compared; load it on the base it was made for",
            path=path,
            expected=config.base_model_name_or_path,
            found=model.name_or_path,
            differences=differences,
            compared=compared,
        )

"""A trained adapter brings its own settings: options that ask for others are refused, not passed over."""

from pathlib import Path
from typing import Any, cast

from softlaunch.arguments import Arguments
from softlaunch.arguments.methods import given_options, methods_with
from softlaunch.errors import ArgumentError, CheckpointError
from softlaunch.layer_names import RELEASED_LAYERS
from softlaunch.messages import say
from softlaunch.run_directory import CONFIG_FILE, METHODS_BY_PEFT_TYPE, ORIGINAL_FILE, find_adapter, read_json
from softlaunch.tuning.head import HEAD_TYPE
from softlaunch.tuning.prefix_model import lora_beside
from softlaunch.tuning.targets import ALL_LINEAR, split_names

_METHODS = {**METHODS_BY_PEFT_TYPE, HEAD_TYPE: "head"}
# Option → key of adapter_config.json. How an adapter begins (prefix_init, …) is nothing to compare: it has begun
_KEYS = {
    "pre_seq_len": "num_virtual_tokens",
    "prefix_projection": "prefix_projection",
    "prefix_dropout": "prefix_dropout",
    "lora_r": "r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "lora_target_modules": "target_modules",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
    "modules_to_save": "modules_to_save",
    "ia3_target_modules": "target_modules",
    "ia3_feedforward_modules": "feedforward_modules",
    "encoder_type": "encoder_reparameterization_type",
    "encoder_hidden_size": "encoder_hidden_size",
    "encoder_num_layers": "encoder_num_layers",
    "encoder_dropout": "encoder_dropout",
}


def check_own_settings(arguments: Arguments, adapter: str | Path) -> None:
    """Raises ArgumentError if options were given that are not those of the adapter at `adapter`, naming all of them."""
    configs = _configs(find_adapter(Path(adapter)) or Path(adapter))
    if not configs:  # no configuration, or one that the loader will refuse
        return
    asked, differences = arguments.tuning.tuning, []
    if asked is not None and asked not in configs:
        differences.append(_difference("tuning", asked, " + ".join(configs)))
    for option in given_options(arguments, configs):
        value, methods = getattr(arguments.tuning, option), methods_with(option)
        own = [configs[method] for method in methods if method in configs]
        if not own:
            differences.append(_difference(option, value, " + ".join(configs)))
        elif option in _KEYS and _KEYS[option] in own[0] and not _agree(option, value, own[0][_KEYS[option]]):
            differences.append(_difference(option, value, own[0][_KEYS[option]]))
    if differences:
        raise ArgumentError(
            "{adapter} has settings of its own, and others are asked for: {differences}. Take these options out, or "
            "leave adapter out to train a new one.",
            adapter=adapter,
            differences="; ".join(differences),
        )


def _difference(option: str, value: Any, found: Any) -> str:
    return say("{option} is {value}, the adapter's is {found}", option=option, value=value, found=found)


def _configs(directory: Path) -> dict[str, dict[str, Any]]:
    """Method → configuration, of an adapter and of the LoRA that belongs to it."""
    configs = {}
    for folder in (directory, lora_beside(directory)):
        if folder is None or not (folder / CONFIG_FILE).is_file():
            continue
        try:
            config = read_json(folder / CONFIG_FILE)
        except CheckpointError:
            continue
        kind = str(config.get("peft_type"))
        if kind == "PREFIX_TUNING":  # PEFT has no dropout on it, and saves what the projection computed
            config = {"num_virtual_tokens": config.get("num_virtual_tokens")}
        if kind in _METHODS:
            configs[_METHODS[kind]] = config
    if not configs and (directory / ORIGINAL_FILE).is_file():
        configs["p_tuning_v2"] = {}
    return configs


def _agree(option: str, value: Any, found: Any) -> bool:
    if option == "encoder_type":
        return value == str(found).lower()
    if option == "modules_to_save":  # a classifier's adapter has its head among them
        return set(value) <= set(found or ())
    if option.endswith("_modules"):
        asked, own = _names(value), _names(found)
        return asked is None or own is None or asked == own
    return value == found


def _names(targets: list[str] | str) -> set[str] | str | None:
    """Names of layers as they are here, or a regular expression; None for what depends on the model."""
    if targets in ("auto", ALL_LINEAR):
        return None
    names = split_names(targets)
    if names is None:
        return cast(str, targets)
    return {native for name in names for native in RELEASED_LAYERS.get(name, (name,))}

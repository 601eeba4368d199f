"""The few options of a run's argument file that decide its size, read without torch and transformers.

Names and defaults are those of `softlaunch.arguments`, which a test holds; that package checks the whole file, this
module only what it reads.
"""

import dataclasses
import difflib
import json
import math
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_type_hints

from softlaunch.arguments.sources import Given, read_sources
from softlaunch.errors import ArgumentError, CheckpointError
from softlaunch.run_directory import METHODS_BY_PEFT_TYPE

# Old names of the options below
OLD_NAMES = {
    "gradient_checkpointing": "activation_checkpointing",
    "ptuning_checkpoint": "adapter",
    "lora_checkpoint": "adapter",
    "generation_num_beams": "num_beams",
    "evaluation_strategy": "eval_strategy",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
}
# Encoders of texts, and options of recipes/classify.py: a run with either tells classes apart
_ENCODERS = {
    *("bert", "roberta", "xlm-roberta", "electra", "distilbert", "albert", "ernie", "camembert", "mpnet", "nezha"),
    *("deberta", "deberta-v2", "modernbert"),
}
_CLASSIFICATION = (
    *("text_column", "text_pair_column", "label_column", "class_file", "num_labels", "validation_share"),
    *("class_weights", "early_stopping_patience", "early_stopping_threshold"),
)
CLASSIFIER_DEFAULTS = {"metric_for_best_model": "f1_macro", "max_source_length": 128}  # of that recipe
# Options that tell which method is meant where `tuning` is not given
_TELLING = {
    "prompt_tuning": ("prompt_init", "prompt_init_text"),
    "p_tuning": ("encoder_type", "encoder_hidden_size", "encoder_num_layers"),
    "ia3": ("ia3_target_modules", "ia3_feedforward_modules"),
    "lora": ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "use_rslora", "use_dora"),
}
_AT_LEAST_1 = (
    *("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "max_source_length"),
    *("max_target_length", "val_max_target_length", "num_beams", "pre_seq_len", "lora_r", "freeze_trainable_layers"),
    *("max_train_samples", "save_total_limit", "encoder_hidden_size", "encoder_num_layers", "num_labels"),
)
METHODS = ("p_tuning_v2", "lora", "ia3", "prompt_tuning", "p_tuning", "full", "freeze", "head")


@dataclass(frozen=True)
class RunSettings:
    """What a plan, a job and a look at a run need to know of its arguments.

    `classifies`: whether it is a run of recipes/classify.py.
    """

    model_name_or_path: str = ""
    dtype: str = "auto"
    quantization_bit: int | None = None
    adapter: str | None = None
    tuning: str | None = None
    pre_seq_len: int | None = None
    prefix_projection: bool = False
    prefix_init: str = "random"
    prompt_init: str = "random"
    prompt_init_text: str | None = None
    encoder_type: str = "mlp"
    encoder_hidden_size: int | None = None
    encoder_num_layers: int = 2
    lora_r: int | None = None
    lora_alpha: float | None = None
    lora_dropout: float = 0.0
    use_rslora: bool = False
    use_dora: bool = False
    modules_to_save: list[str] | None = None
    lora_target_modules: list[str] | str = "auto"
    ia3_target_modules: list[str] | str = "auto"
    ia3_feedforward_modules: list[str] | str = "auto"
    freeze_trainable_layers: int | None = None
    train_file: str | None = None
    validation_file: str | None = None
    test_file: str | None = None
    prompt_column: str = "prompt"
    text_column: str | int = "text"
    class_file: str | None = None
    num_labels: int | None = None
    validation_share: float = 0.1
    max_train_samples: int | None = None
    max_source_length: int = 64
    max_target_length: int = 128
    val_max_target_length: int | None = None
    train_on_all_turns: bool = False
    num_beams: int = 1
    do_train: bool = False
    do_eval: bool = False
    do_predict: bool = False
    eval_strategy: str = "no"
    predict_with_generate: bool = False
    output_dir: str | None = None
    per_device_train_batch_size: int = 8
    per_device_eval_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    num_train_epochs: float = 3.0
    max_steps: int = -1
    bf16: bool = False
    fp16: bool = False
    activation_checkpointing: bool | None = None
    learning_rate: float = 5e-5
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    optim: str = "adamw_torch_fused"
    save_strategy: str = "steps"
    save_steps: float = 500
    save_total_limit: int | None = None
    deepspeed: str | dict[str, Any] | None = None
    classifies: bool = field(default=False, metadata={"found": "by the base and the options"})

    @property
    def names_method(self) -> bool:
        """Whether the settings alone say what is trained; else the recipe does, and `methods` takes the whole base."""
        return self._asked() != () or self.classifies

    @property
    def methods(self) -> tuple[str, ...]:
        """What is trained, by the names of `METHODS`; a prefix and LoRA may be trained together."""
        return self._asked() or (("lora",) if self.classifies else ("full",))

    def _asked(self) -> tuple[str, ...]:
        if self.tuning is not None and self.tuning not in ("p_tuning_v2", "lora"):
            return (self.tuning,)
        defaults = RunSettings.__dataclass_fields__
        told = [m for m, names in _TELLING.items() if any(getattr(self, n) != defaults[n].default for n in names)]
        if self.tuning is None and told and told[0] != "lora":
            return (told[0],)
        prefix = self.pre_seq_len is not None or self.prefix_init == "text"
        asked = {"p_tuning_v2": prefix, "lora": "lora" in told}
        found = tuple(m for m, given in asked.items() if given or m == self.tuning)
        return found or (() if self.freeze_trainable_layers is None else ("freeze",))

    @property
    def reading(self) -> dict[str, Any]:
        """What the recipe for these settings gives to what reads its options."""
        if self.classifies:
            return {"methods": (), "classifies": True, "defaults": CLASSIFIER_DEFAULTS}
        return {"methods": self.methods, "classifies": False, "defaults": {}}

    @property
    def row_tokens(self) -> int:
        """Tokens of the longest row that the limits allow; the answer is followed by one that ends it."""
        if self.classifies:
            return self.max_source_length
        return self.max_source_length + self.max_target_length + 1

    @property
    def label_tokens(self) -> int:
        """Tokens of such a row that carry loss, at which there are logits over the vocabulary."""
        if self.classifies:
            return 0
        return self.row_tokens if self.train_on_all_turns else self.max_target_length + 1

    @property
    def new_tokens(self) -> int:
        return self.val_max_target_length or self.max_target_length

    @property
    def generates(self) -> bool:
        asked = self.do_predict or (self.predict_with_generate and (self.do_eval or self.eval_strategy != "no"))
        return asked and not self.classifies

    @property
    def evaluates(self) -> bool:
        encodes = self.classifies and (self.do_predict or "head" in self.methods)
        return self.do_eval or self.eval_strategy != "no" or encodes

    @property
    def num_classes(self) -> int | None:
        """As `class_file` or `num_labels` say; the rows, which are not read here, may say otherwise."""
        try:
            return len(Path(self.class_file or "").read_text(encoding="utf-8", errors="replace").rstrip().splitlines())
        except (OSError, ValueError):
            return self.num_labels


def settings_of(*groups: Any) -> RunSettings:
    """The settings that stand in `groups` of arguments, as `softlaunch.arguments` makes them."""
    values = {name: value for group in groups for name, value in vars(group).items()}
    for old, name in OLD_NAMES.items():  # the oldest transformers that is supported has some of these
        if name not in values and old in values:
            values[name] = values[old]
    values = {name: values[name] for name in RunSettings.__dataclass_fields__ if name in values}
    values = {name: value.value if isinstance(value, Enum) else value for name, value in values.items()}
    classifies = _is_encoder(values["model_name_or_path"])
    return _with_adapter(RunSettings(**values, classifies=classifies))


def read_settings(argv: list[str]) -> RunSettings:
    """The settings that `RUN.json --option value …` gives; options that are not among them are left to the run.

    Raises ArgumentError when the file cannot be read, or a value is of another type.
    """
    given, _ = read_sources(argv)
    hints = get_type_hints(RunSettings)
    values: dict[str, Any] = {}
    for item in map(_positive, given):
        name = OLD_NAMES.get(item.name, item.name)
        if name in hints:
            values[name] = _value(item, hints[name])
            _check_range(item, name, values[name])
    if not values.get("model_name_or_path"):
        near = difflib.get_close_matches("model_name_or_path", [item.name for item in given], n=1)
        raise ArgumentError(
            "model_name_or_path is missing: the directory of the base model{hint}",
            hint=f" ({near[0]}?)" if near else "",
        )
    if values.get("tuning") not in (None, *METHODS):
        raise ArgumentError(
            "tuning is {method!r}; allowed are {known}", method=values["tuning"], known=", ".join(METHODS)
        )
    classifies = values.get("tuning") == "head" or _is_encoder(values["model_name_or_path"])
    if classifies or any(item.name in _CLASSIFICATION for item in given):
        values = {"max_source_length": CLASSIFIER_DEFAULTS["max_source_length"], **values, "classifies": True}
    return _with_adapter(RunSettings(**values))


def _is_encoder(base: str) -> bool:
    try:
        return json.loads((Path(base) / "config.json").read_text(encoding="utf-8"))["model_type"] in _ENCODERS
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def _with_adapter(settings: RunSettings) -> RunSettings:
    """With the size of the adapter that is trained further, which stands in its own configuration.

    Raises CheckpointError when that is of another kind than a size is.
    """
    file = Path(settings.adapter or "") / "adapter_config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        kind = METHODS_BY_PEFT_TYPE[config["peft_type"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return settings
    for name, kinds in {"r": int, "num_virtual_tokens": int, "target_modules": list[str] | str}.items():
        if config.get(name) is not None and not _is_a(config[name], set(get_args(kinds) or (kinds,))):
            raise CheckpointError("{file}: {name} cannot be {value!r}", file=file, name=name, value=config[name])
    own: dict[str, Any] = {"tuning": kind}
    if kind == "lora":
        own |= {"lora_r": config.get("r"), "lora_target_modules": config.get("target_modules") or "auto"}
    elif kind != "ia3":
        own |= {"pre_seq_len": config.get("num_virtual_tokens")}
    if kind == "p_tuning_v2":
        own |= {"prefix_projection": bool(config.get("prefix_projection")), "prefix_init": "random"}
    return dataclasses.replace(settings, **own)


def _positive(given: Given) -> Given:
    """`--no_option` as `--option false`."""
    if given.file is None and not given.value and given.name.startswith("no_"):
        return Given(given.name.removeprefix("no_"), ["false"])
    return given


def _value(given: Given, hint: Any) -> Any:
    kinds = set(get_args(hint) or (hint,))
    value = given.value
    if given.file is None:
        value = _from_words(given.value, kinds)
    if isinstance(value, int) and not isinstance(value, bool) and float in kinds:
        return value
    if not _is_a(value, kinds) or (isinstance(value, float) and not math.isfinite(value)):
        raise ArgumentError(
            "{given} is not of the type that the option takes; run `softlaunch check` for all that is wrong",
            given=given.shown,
        )
    return value


def _is_a(value: Any, kinds: set[Any]) -> bool:
    """Whether a value is of one of the types; lists are of texts."""
    names = {getattr(kind, "__origin__", kind) for kind in kinds}
    return type(value) in names and (type(value) is not list or all(isinstance(item, str) for item in value))


def _check_range(given: Given, name: str, value: Any) -> None:
    if name in _AT_LEAST_1 and value is not None and value < 1:
        raise ArgumentError("{given} must be at least 1", given=given.shown)
    if name == "quantization_bit" and value not in (None, 4, 8):
        raise ArgumentError("{given} must be 4 or 8", given=given.shown)


def _from_words(words: list[str], kinds: set[Any]) -> Any:
    if not words:
        return True
    if len(words) > 1:
        return words
    if words[0] in ("true", "false", "True", "False") or kinds & {int, float}:
        try:
            return json.loads(words[0].lower())
        except ValueError:
            pass
    return None if words[0] == "null" else words[0]

"""The base with the adapter that a run's arguments ask for."""

from collections.abc import Collection
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from softlaunch.arguments import Arguments, TuningArguments
from softlaunch.arguments.defaults import LORA_ALPHA, LORA_R
from softlaunch.errors import ArgumentError
from softlaunch.tuning.adapter_model import AdapterModel
from softlaunch.tuning.attention import check_implementation
from softlaunch.tuning.earlier import earlier_adapter
from softlaunch.tuning.load import load_adapter
from softlaunch.tuning.peft_methods import add_ia3, add_lora, add_p_tuning, add_prompt_tuning
from softlaunch.tuning.prefix import add_prefix
from softlaunch.tuning.prefix_model import PrefixModel
from softlaunch.tuning.soft_prompt import SoftPromptModel


def with_adapter(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, arguments: Arguments, methods: Collection[str]
) -> PeftModel:
    """`base`, frozen, with a trained adapter (`adapter`, or what an earlier run left) or else a new one.

    `methods`: of `arguments.methods.chosen_methods`; they say what a new one is, a trained one tells it by itself.
    """
    trained, tuning = earlier_adapter(arguments), arguments.tuning
    if trained is None and "p_tuning_v2" in methods:
        check_new_prefix(arguments)
    if trained is not None:
        trainable = arguments.training.do_train
        return load_adapter(base, trained, trainable=trainable, num_virtual_tokens=tuning.pre_seq_len)
    model: Any = base
    if "lora" in methods:
        model = add_lora(base, **lora_options(tuning))
    if "p_tuning_v2" in methods:
        model = new_prefix(model, tokenizer, tuning)
    if "ia3" in methods:
        model = add_ia3(base, **ia3_options(tuning))
    if "prompt_tuning" in methods:
        model = new_prompt(base, tokenizer, tuning)
    if "p_tuning" in methods:
        model = add_p_tuning(base, **p_tuning_options(tuning))
    return model


def check_new_prefix(arguments: Arguments) -> None:
    """Raises ArgumentError for options that no untrained prefix can be made from."""
    check_implementation(arguments.model.attn_implementation)
    if arguments.tuning.pre_seq_len is None and arguments.tuning.prefix_init != "text":
        raise ArgumentError("pre_seq_len is not set: give the number of virtual tokens, 16 to 128 as a rule")


def new_prefix(
    model: PreTrainedModel | AdapterModel, tokenizer: PreTrainedTokenizerBase, tuning: TuningArguments
) -> PrefixModel:
    """An untrained prefix as the arguments describe it."""
    return add_prefix(
        model,
        num_virtual_tokens=tuning.pre_seq_len,
        initialisation=tuning.prefix_init,  # type: ignore[arg-type]
        init_ids=_ids(tokenizer, tuning.prefix_init_text) if tuning.prefix_init == "text" else None,
        projection=tuning.prefix_projection,
        dropout=tuning.prefix_dropout,
    )


def lora_options(tuning: TuningArguments) -> dict[str, Any]:
    """What `add_lora` takes."""
    return {
        "r": tuning.lora_r or LORA_R,
        "alpha": tuning.lora_alpha or LORA_ALPHA,
        "dropout": tuning.lora_dropout,
        "target_modules": tuning.lora_target_modules,
        "modules_to_save": tuning.modules_to_save,
        "rslora": tuning.use_rslora,
        "dora": tuning.use_dora,
    }


def ia3_options(tuning: TuningArguments) -> dict[str, Any]:
    """What `add_ia3` takes."""
    return {
        "target_modules": tuning.ia3_target_modules,
        "feedforward_modules": tuning.ia3_feedforward_modules,
        "modules_to_save": tuning.modules_to_save,
    }


def p_tuning_options(tuning: TuningArguments) -> dict[str, Any]:
    """What `add_p_tuning` takes."""
    return {
        "num_virtual_tokens": tuning.pre_seq_len,
        "encoder": tuning.encoder_type,
        "hidden_size": tuning.encoder_hidden_size,
        "num_layers": tuning.encoder_num_layers,
        "dropout": tuning.encoder_dropout,
    }


def new_prompt(base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tuning: TuningArguments) -> SoftPromptModel:
    """An untrained prompt as the arguments describe it."""
    return add_prompt_tuning(
        base,
        num_virtual_tokens=tuning.pre_seq_len,
        initialisation=tuning.prompt_init,  # type: ignore[arg-type]
        init_ids=_ids(tokenizer, tuning.prompt_init_text) if tuning.prompt_init == "text" else None,
    )


def _ids(tokenizer: PreTrainedTokenizerBase, text: str | None) -> list[int]:
    return tokenizer(text or "")["input_ids"]

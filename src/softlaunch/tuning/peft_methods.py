"""The methods that PEFT implements: LoRA with rsLoRA and DoRA, IA3, prompt tuning, P-tuning v1.

model = add_lora(base, r=8)             # a peft.PeftModel; only the adapter trains, in float32
model.save_pretrained("adapter")
model = load_adapter(base, "adapter")   # of softlaunch.tuning: any kind of adapter
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from peft import IA3Config, LoraConfig, PromptEncoderConfig, PromptTuningConfig
from transformers import PreTrainedModel

from softlaunch.arguments.defaults import LORA_ALPHA, LORA_R
from softlaunch.errors import ArgumentError
from softlaunch.tuning.adapter_model import AdapterModel
from softlaunch.tuning.soft_prompt import SoftPromptModel, set_prompt
from softlaunch.tuning.split import gathered
from softlaunch.tuning.targets import find_targets

PromptInitialisation = Literal["random", "vocabulary", "text"]
_CAUSAL = "CAUSAL_LM"


def add_lora(model: PreTrainedModel, *, adapter_name: str = "default", **options: Any) -> AdapterModel:
    """Freeze `model` and learn low-rank updates of `target_modules` (arXiv:2106.09685), scaled by alpha / r.

    Options are those of `lora_config`. `rslora` scales by alpha / sqrt(r) (arXiv:2312.03732), `dora` learns the
    columns' lengths too (arXiv:2402.09353).
    Raises ArgumentError when a target or one of `modules_to_save` matches nothing, see `find_targets`.
    """
    return AdapterModel(model, lora_config(model, _CAUSAL, **options), adapter_name)


def add_ia3(model: PreTrainedModel, *, adapter_name: str = "default", **options: Any) -> AdapterModel:
    """Freeze `model` and learn factors for the outputs of layers, for the inputs of `feedforward_modules`
    (arXiv:2205.05638). These are among `target_modules`; `auto` takes what PEFT knows for the architecture.

    Options are those of `ia3_config`. Raises ArgumentError when a name matches nothing, or a feed-forward module is no
    target.
    """
    return AdapterModel(model, ia3_config(model, _CAUSAL, **options), adapter_name)


def add_prompt_tuning(
    model: PreTrainedModel,
    *,
    num_virtual_tokens: int | None = None,
    initialisation: PromptInitialisation = "random",
    init_ids: Sequence[int] | None = None,
    adapter_name: str = "default",
) -> SoftPromptModel:
    """Freeze `model` and learn `num_virtual_tokens` embeddings in front of every row.

    `initialisation`: `random` is N(0, 1); `vocabulary` takes the embeddings of random tokens; `text` those of
    `init_ids`, repeated or cut to `num_virtual_tokens` (as many as there are, if that is not given).
    Raises ArgumentError for `text` without ids and for no virtual tokens.
    """
    if initialisation == "text":
        if not init_ids:
            raise ArgumentError("prompt_init text needs prompt_init_text: the text to start from")
        num_virtual_tokens = num_virtual_tokens or len(init_ids)
        init_ids = [init_ids[i % len(init_ids)] for i in range(num_virtual_tokens)]
    from_vocabulary = initialisation == "vocabulary"
    config = prompt_tuning_config(
        model, _CAUSAL, num_virtual_tokens=num_virtual_tokens, from_vocabulary=from_vocabulary
    )
    tuned = SoftPromptModel(model, config, adapter_name)
    if initialisation == "text":  # PEFT would load a tokenizer for it, and ChatGLM's is none that it can load
        ids = torch.tensor(init_ids, device=tuned.word_embeddings.weight.device)
        with torch.no_grad(), gathered([tuned.word_embeddings.weight]) as (table,):
            set_prompt(tuned, table[ids].float(), adapter_name)
    return tuned


def add_p_tuning(model: PreTrainedModel, *, adapter_name: str = "default", **options: Any) -> SoftPromptModel:
    """Freeze `model` and learn embeddings in front of every row through an encoder, `mlp` or `lstm`, as wide as the
    base unless `hidden_size` is given.

    Options are those of `p_tuning_config`; `num_layers` and `dropout` are those of the LSTM. Raises ArgumentError for
    no virtual tokens.
    """
    return SoftPromptModel(model, p_tuning_config(model, _CAUSAL, **options), adapter_name)


def lora_config(
    model: PreTrainedModel,
    task_type: str,
    *,
    r: int = LORA_R,
    alpha: float = LORA_ALPHA,
    dropout: float = 0.0,
    target_modules: Sequence[str] | str = "auto",
    modules_to_save: Sequence[str] | None = None,
    rslora: bool = False,
    dora: bool = False,
) -> LoraConfig:
    """PEFT's configuration of what `add_lora` describes."""
    if r < 1:
        raise ArgumentError("lora_r is {r}; it must be at least 1, 8 as a rule", r=r)
    if dora and getattr(model, "is_loaded_in_8bit", False) and model.device.type == "cpu":
        raise ArgumentError(
            "use_dora fails on an 8-bit base on the CPU, by a fault of PEFT's: take quantization_bit 4 or LoRA"
        )
    return LoraConfig(
        task_type=task_type,
        r=r,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=dropout,
        target_modules=find_targets(model, target_modules, "lora"),
        modules_to_save=_existing(model, modules_to_save),
        use_rslora=rslora,
        use_dora=dora,
    )


def ia3_config(
    model: PreTrainedModel,
    task_type: str,
    *,
    target_modules: Sequence[str] | str = "auto",
    feedforward_modules: Sequence[str] | str = "auto",
    modules_to_save: Sequence[str] | None = None,
) -> IA3Config:
    """PEFT's configuration of what `add_ia3` describes."""
    targets = find_targets(model, target_modules, "ia3")
    feedforward = find_targets(model, feedforward_modules, "ia3 feed-forward")
    if not isinstance(targets, str) and not isinstance(feedforward, str):
        outside = sorted(set(feedforward) - set(targets))
        if feedforward_modules == "auto":
            feedforward = [name for name in feedforward if name in targets]
        elif outside:
            raise ArgumentError(
                "ia3_feedforward_modules {names} are not among ia3_target_modules {targets}",
                names=", ".join(outside),
                targets=", ".join(targets),
            )
    return IA3Config(
        task_type=task_type,
        target_modules=targets,
        feedforward_modules=feedforward,
        modules_to_save=_existing(model, modules_to_save),
    )


def prompt_tuning_config(
    model: PreTrainedModel, task_type: str, *, num_virtual_tokens: int | None, from_vocabulary: bool = False
) -> PromptTuningConfig:
    """PEFT's configuration of embeddings in front of every row that begin as N(0, 1), or as those of random tokens."""
    return PromptTuningConfig(
        task_type=task_type,
        num_virtual_tokens=require_length(num_virtual_tokens),
        prompt_tuning_init="SAMPLE_VOCAB" if from_vocabulary else "RANDOM",
        **_shape(model),
    )


def p_tuning_config(
    model: PreTrainedModel,
    task_type: str,
    *,
    num_virtual_tokens: int | None,
    encoder: str = "mlp",
    hidden_size: int | None = None,
    num_layers: int = 2,
    dropout: float = 0.0,
) -> PromptEncoderConfig:
    """PEFT's configuration of what `add_p_tuning` describes."""
    shape = _shape(model)
    return PromptEncoderConfig(
        task_type=task_type,
        num_virtual_tokens=require_length(num_virtual_tokens),
        encoder_reparameterization_type=encoder.upper(),
        encoder_hidden_size=hidden_size or shape["token_dim"],
        encoder_num_layers=num_layers,
        encoder_dropout=dropout,
        **shape,
    )


def require_length(num_virtual_tokens: int | None) -> int:
    """Raises ArgumentError for no virtual tokens."""
    if not num_virtual_tokens or num_virtual_tokens < 1:
        raise ArgumentError("pre_seq_len is not set: give the number of virtual tokens, 8 to 100 as a rule")
    return num_virtual_tokens


def _shape(model: PreTrainedModel) -> dict[str, Any]:
    """What PEFT's `get_peft_model` reads from a config, by names that not every architecture has."""
    config = model.config.get_text_config()
    return {
        "token_dim": config.hidden_size,
        "num_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_transformer_submodules": 1,
    }


def _existing(model: PreTrainedModel, names: Sequence[str] | None) -> list[str] | None:
    if not names:
        return None
    paths = [path for path, _ in model.named_modules()]
    missing = [name for name in names if not any(path.endswith(name) for path in paths)]
    if missing:
        raise ArgumentError(
            "modules_to_save: there is no {missing} in {model}; there are {names}",
            missing=", ".join(missing),
            model=type(model).__name__,
            names=", ".join(sorted({path.rpartition(".")[2] for path in paths if path})),
        )
    return list(names)

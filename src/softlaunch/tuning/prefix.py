"""P-Tuning v2 on any transformers model that uses the attention interface (arXiv:2110.07602).

model = add_prefix(base, num_virtual_tokens=128)      # a peft.PeftModel; only the prefix trains
model.save_pretrained("adapter")
model = load_adapter(base, "adapter")                 # of softlaunch.tuning: any kind of adapter
export_adapter(model, "for_peft", format="peft")
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedModel

from softlaunch.errors import ArgumentError
from softlaunch.tuning import formats
from softlaunch.tuning.adapter_model import AdapterModel
from softlaunch.tuning.fingerprint import fingerprint
from softlaunch.tuning.head import PrefixClassifier
from softlaunch.tuning.prefix_encoder import Initialisation, PrefixConfig, kv_shape, text_states
from softlaunch.tuning.prefix_model import PrefixModel

ExportFormat = Literal["peft", "original"]


def add_prefix(
    model: PreTrainedModel | AdapterModel,
    *,
    num_virtual_tokens: int | None = None,
    initialisation: Initialisation = "random",
    init_ids: Sequence[int] | None = None,
    projection: bool = False,
    dropout: float = 0.1,
    head: Sequence[str] = (),
    adapter_name: str = "default",
) -> PrefixModel:
    """Freeze `model` and put `num_virtual_tokens` learned keys and values in front of every layer's attention.

    LoRA that the model has goes on training beside the prefix.

    `initialisation`: `random` is the original's, N(0, 1); `zero` is PEFT's; `text` takes the keys and values that the
    base computes for `init_ids`, repeated or cut to `num_virtual_tokens` (as many as there are, if that is not given).
    `projection` puts the original's MLP, as wide as the hidden size, between the table and the layers. `head`: paths of
    modules of a classifier that train with the prefix and are saved with it.

    Raises ArgumentError for a model that cannot take a prefix, and for `text` without ids or with a projection.
    """
    if initialisation == "text":
        if projection or not init_ids:
            raise ArgumentError("text initialisation needs init_ids, and cannot be combined with a projection")
        num_virtual_tokens = num_virtual_tokens or len(init_ids)
        init_ids = [init_ids[i % len(init_ids)] for i in range(num_virtual_tokens)]
    if not num_virtual_tokens or num_virtual_tokens < 1:
        raise ArgumentError("num_virtual_tokens must be at least 1, found {asked}", asked=num_virtual_tokens)
    base: Any = model.get_base_model() if isinstance(model, AdapterModel) else model
    layers, kv_heads, head_dim = kv_shape(base.config)
    config = PrefixConfig(
        task_type="CAUSAL_LM" if base.can_generate() else "SEQ_CLS" if head else None,
        num_virtual_tokens=num_virtual_tokens,
        num_layers=layers,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        prefix_projection=projection,
        projection_size=base.config.get_text_config().hidden_size if projection else 0,
        prefix_dropout=dropout,
        modules_to_save=list(head) or None,
        base_fingerprint=fingerprint(base),
    )
    states = text_states(base, init_ids) if initialisation == "text" and init_ids else None
    tuned = (PrefixClassifier if head else PrefixModel)(model, config, adapter_name)
    encoder = tuned.encoder(adapter_name)
    if states is not None:
        encoder.set_states(states.to(encoder.embedding.weight.device))
    elif initialisation == "zero":
        encoder.set_zero()
    return tuned


def export_adapter(
    model: PrefixModel, directory: str | Path, *, format: ExportFormat, adapter_name: str | None = None
) -> None:
    """Write a prefix for other programs; the active one unless `adapter_name` is given.

    `peft`: a PREFIX_TUNING adapter, with which stock `peft.PeftModel.from_pretrained(base, directory)` computes the
    same logits and answers, up to float rounding. (But under a sliding window PEFT's prefix leaves the window like any
    token, and ours does not: texts that do not fit into it together with the prefix differ.) `original`: the
    `pytorch_model.bin` that ChatGLM2's P-Tuning v2 scripts take as `ptuning_checkpoint`. Our own format is what
    `model.save_pretrained` writes.

    Raises ArgumentError for another format, for `peft` where no fixed key fits (see `rotate_keys`), and for a prefix
    with LoRA of its name or with a head, which these formats cannot hold.
    """
    name = adapter_name or model.active_adapter
    encoder = model.encoder(name)
    if encoder.config.modules_to_save or (model.lora and name in model.lora.peft_config):
        raise ArgumentError(
            "{name!r} is more than a prefix: with it work LoRA or the head of a classifier, for which the format "
            "{format} has no place",
            name=name,
            format=format,
        )
    if format == "peft":
        formats.write_peft(model.get_base_model(), encoder, Path(directory))
    elif format == "original":
        formats.write_original(encoder, Path(directory))
    else:
        raise ArgumentError("format is {format!r}; allowed are 'peft' and 'original'", format=format)

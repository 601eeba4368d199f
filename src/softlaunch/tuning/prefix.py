"""P-Tuning v2 on any transformers model that uses the attention interface (arXiv:2110.07602).

model = add_prefix(base, num_virtual_tokens=128)      # a peft.PeftModel; only the prefix trains
model.save_pretrained("adapter")
model = load_adapter(base, "adapter")
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from softlaunch.errors import CheckpointError
from softlaunch.tuning import formats
from softlaunch.tuning.attention import PrefixStates, use_prefix_attention
from softlaunch.tuning.fingerprint import fingerprint, num_differences
from softlaunch.tuning.prefix_encoder import Initialisation, PrefixConfig, PrefixEncoder, kv_shape, text_states

logger = logging.getLogger(__name__)


class PrefixModel(PeftModel):
    """A frozen base with one or more prefixes, one of them active. Trainer, Accelerate and the hub see a PEFT model.

    Every call of the base, `generate` included, gets the active prefix; inside `disable_adapter()` none. A call in
    which the prefix does not reach every layer raises RuntimeError.
    """

    base_model: PreTrainedModel
    prefix_encoder: nn.ModuleDict

    def __init__(self, model: PreTrainedModel, peft_config: PrefixConfig, adapter_name: str = "default", **_: Any):
        model.requires_grad_(False)
        self._attention = use_prefix_attention(model)
        self._generation_states: PrefixStates | None = None
        super().__init__(model, peft_config, adapter_name)
        model.register_forward_pre_hook(self._insert_prefix, with_kwargs=True)
        model.register_forward_hook(self._check_prefix, with_kwargs=True)

    # -- the forward pass

    def prefix_states(self) -> PrefixStates:
        """The active prefix, computed anew: with gradient where gradients are on."""
        encoder = self.encoder(self.active_adapter)
        return PrefixStates(encoder(), encoder.config.prefix_dropout)

    def encoder(self, adapter_name: str = "default") -> PrefixEncoder:
        """The trainable part of one adapter."""
        return cast(PrefixEncoder, self.prefix_encoder[adapter_name])

    def _insert_prefix(self, base: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        if self._adapters_disabled:
            return None
        if base.config._attn_implementation != self._attention:
            raise RuntimeError(
                f"the prefix is attached but not in force: the attention implementation is now "
                f"{base.config._attn_implementation!r} instead of {self._attention!r}. It was changed after the prefix "
                "was added, or a second model was made from the same config object (give it a copy.deepcopy of it)"
            )
        return args, {**kwargs, "prefix_states": self._generation_states or self.prefix_states()}

    def _check_prefix(self, base: Any, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        states: PrefixStates | None = kwargs.get("prefix_states")
        if states is None or torch.compiler.is_compiling():
            return
        applied, states.num_layers_applied = states.num_layers_applied, 0
        if applied != len(states.states):
            raise RuntimeError(
                f"the prefix reached {applied} of {len(states.states)} layers: {type(base).__name__} does not hand "
                "keyword arguments on to its attention"
            )

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """The base's `generate`, with the prefix computed once for all steps."""
        with torch.no_grad():
            self._generation_states = self.prefix_states()
        try:
            return cast(Any, self.base_model).generate(*args, **kwargs)
        finally:
            self._generation_states = None

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Inside, the base answers as if there were no prefix."""
        before, self._adapters_disabled = self._adapters_disabled, True
        try:
            yield
        finally:
            self._adapters_disabled = before

    def prepare_model_for_gradient_checkpointing(self, model: PreTrainedModel) -> PreTrainedModel:
        """Nothing to prepare: the prefix enters every layer by itself, so no input has to require gradients."""
        return model

    def digest(self) -> str:
        """Short digest of what decides about the answers: the base, and the active prefix unless it is disabled."""
        found = hashlib.sha256(json.dumps([self.base_model.name_or_path, fingerprint(self.base_model)]).encode())
        if not self._adapters_disabled:
            with torch.no_grad():
                found.update(self.prefix_states().states.contiguous().cpu().numpy().tobytes())
        return found.hexdigest()[:12]

    # -- several adapters

    def add_adapter(self, adapter_name: str, peft_config: PrefixConfig, **_: Any) -> None:  # type: ignore[override]
        """Add a randomly initialised prefix; it is not made active."""
        if adapter_name in self.peft_config:
            raise ValueError(f"an adapter named {adapter_name!r} exists already")
        if "prefix_encoder" not in self._modules:
            self.prefix_encoder = nn.ModuleDict()
        peft_config.base_model_name_or_path = peft_config.base_model_name_or_path or self.base_model.name_or_path
        encoder = PrefixEncoder(peft_config).to(self.base_model.device)
        encoder.requires_grad_(adapter_name == self.active_adapter and not peft_config.inference_mode)
        self.prefix_encoder[adapter_name] = encoder
        self.peft_config[adapter_name] = peft_config

    def set_adapter(self, adapter_name: str, inference_mode: bool = False) -> None:
        """Make one prefix the active one, trainable unless `inference_mode`; the others are frozen."""
        if adapter_name not in self.peft_config:
            raise ValueError(f"no adapter named {adapter_name!r}; there are {sorted(self.peft_config)}")
        self.active_adapter = adapter_name
        for name, encoder in self.prefix_encoder.items():
            encoder.requires_grad_(name == adapter_name and not inference_mode)

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove a prefix that is not the active one."""
        if adapter_name == self.active_adapter:
            raise ValueError(f"{adapter_name!r} is active; make another adapter active before you delete it")
        del self.prefix_encoder[adapter_name], self.peft_config[adapter_name]

    # -- files

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | Path,
        state_dict: dict[str, torch.Tensor] | None = None,
        is_main_process: bool = True,
        selected_adapters: list[str] | None = None,
        **_: Any,
    ) -> None:
        """Write `default` (or the only one selected) into `save_directory`, others into folders of their names.

        `state_dict` holds the model's tensors where this process does not have them all (ZeRO-3).
        """
        if not is_main_process:
            return
        for name in selected_adapters or list(self.peft_config):
            prefix = f"prefix_encoder.{name}."
            everything = self.state_dict() if state_dict is None else state_dict
            tensors = {k.split(prefix, 1)[1]: v for k, v in everything.items() if prefix in k}
            folder = Path(save_directory) / ("" if name == "default" else name)
            config = self.peft_config[name]
            assert isinstance(config, PrefixConfig)
            if config.base_fingerprint is None:
                config.base_fingerprint = fingerprint(self.base_model)
            formats.write_prefix(tensors, config, folder)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        model: PreTrainedModel,
        model_id: str | Path,
        adapter_name: str = "default",
        is_trainable: bool = False,
        **_: Any,
    ) -> "PrefixModel":
        """As `load_adapter` of this module."""
        return load_adapter(model, model_id, adapter_name=adapter_name, trainable=is_trainable)

    def load_adapter(  # type: ignore[override]
        self, model_id: str | Path, adapter_name: str, is_trainable: bool = False, **_: Any
    ) -> None:
        """Read an adapter directory into `adapter_name`, new or existing; trainability of an existing one is kept."""
        saved = formats.read_prefix(self.base_model, model_id)
        _check_fits(self.base_model, saved, model_id)
        if adapter_name not in self.peft_config:
            saved.config.inference_mode = not is_trainable
            self.add_adapter(adapter_name, saved.config)
        self.encoder(adapter_name).load_state_dict(saved.tensors)
        _report(model_id, saved)


def add_prefix(
    model: PreTrainedModel,
    *,
    num_virtual_tokens: int | None = None,
    initialisation: Initialisation = "random",
    init_ids: Sequence[int] | None = None,
    projection: bool = False,
    dropout: float = 0.1,
    adapter_name: str = "default",
) -> PrefixModel:
    """Freeze `model` and put `num_virtual_tokens` learned keys and values in front of every layer's attention.

    `initialisation`: `random` is the original's, N(0, 1); `zero` is PEFT's; `text` takes the keys and values that the
    base computes for `init_ids`, repeated or cut to `num_virtual_tokens` (as many as there are, if that is not given).
    `projection` puts the original's MLP, as wide as the hidden size, between the table and the layers.

    Raises ValueError for a model that cannot take a prefix, and for `text` without ids or together with a projection.
    """
    if initialisation == "text":
        if projection or not init_ids:
            raise ValueError("text initialisation needs init_ids, and cannot be combined with a projection")
        num_virtual_tokens = num_virtual_tokens or len(init_ids)
        init_ids = [init_ids[i % len(init_ids)] for i in range(num_virtual_tokens)]
    if not num_virtual_tokens or num_virtual_tokens < 1:
        raise ValueError(f"num_virtual_tokens must be at least 1, found {num_virtual_tokens}")
    layers, kv_heads, head_dim = kv_shape(model.config)
    config = PrefixConfig(
        task_type="CAUSAL_LM" if model.can_generate() else None,
        num_virtual_tokens=num_virtual_tokens,
        num_layers=layers,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        prefix_projection=projection,
        projection_size=model.config.get_text_config().hidden_size if projection else 0,
        prefix_dropout=dropout,
        base_fingerprint=fingerprint(model),
    )
    states = text_states(model, init_ids) if initialisation == "text" and init_ids else None
    tuned = PrefixModel(model, config, adapter_name)
    encoder = tuned.encoder(adapter_name)
    if states is not None:
        encoder.set_states(states.to(encoder.embedding.weight.device))
    elif initialisation == "zero":
        encoder.set_zero()
    return tuned


def load_adapter(
    model: PreTrainedModel,
    path: str | Path,
    *,
    adapter_name: str = "default",
    trainable: bool = False,
    num_virtual_tokens: int | None = None,
) -> PrefixModel:
    """Put the prefix found at `path` (any format that `formats.read_prefix` knows) on `model`, and make it active.

    Raises CheckpointError when the prefix was made for another base, or is not `num_virtual_tokens` long.
    """
    saved = formats.read_prefix(model, path)
    _check_fits(model, saved, path, num_virtual_tokens)
    saved.config.inference_mode = not trainable
    tuned = PrefixModel(model, saved.config, adapter_name)
    tuned.encoder(adapter_name).load_state_dict(saved.tensors)
    _report(path, saved)
    return tuned


def _report(path: str | Path, saved: formats.SavedPrefix) -> None:
    tokens, tensors = saved.config.num_virtual_tokens, len(saved.tensors)
    logger.info("%s: %d tensors applied, a prefix of %d virtual tokens", path, tensors, tokens)


def _check_fits(
    model: PreTrainedModel, saved: formats.SavedPrefix, path: str | Path, num_virtual_tokens: int | None = None
) -> None:
    config, shape = saved.config, kv_shape(model.config)
    if num_virtual_tokens is not None and config.num_virtual_tokens != num_virtual_tokens:
        raise CheckpointError(
            f"{path}: the adapter has {config.num_virtual_tokens} virtual tokens, pre_seq_len asks for "
            f"{num_virtual_tokens}; leave pre_seq_len out or set it to {config.num_virtual_tokens}"
        )
    found = (config.num_layers, config.num_kv_heads, config.head_dim)
    width = saved.tensors["embedding.weight"].shape[1]
    if found != shape or width != config.table_size:
        raise CheckpointError(
            f"{path}: the adapter is for another model: expected {shape[0]} layers × {shape[1]} kv heads × {shape[2]}, "
            f"found {found[0]} × {found[1]} × {found[2]} ({width} numbers per virtual token)"
        )
    differences = num_differences(config.base_fingerprint, fingerprint(model)) if config.base_fingerprint else 0
    if differences:
        raise CheckpointError(
            f"{path}: the adapter was trained on another base: expected {config.base_model_name_or_path}, found "
            f"{model.name_or_path}, whose weights differ in {differences} of {len(config.base_fingerprint or [])} "
            "numbers compared; load it on the base it was made for"
        )

"""A base model with prefixes: what Trainer, Accelerate and the hub see as a PEFT model."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from softlaunch.errors import ArgumentError
from softlaunch.run_directory import CONFIG_FILE
from softlaunch.tuning import formats
from softlaunch.tuning.adapter_model import AdapterModel, read_config, require_adapter
from softlaunch.tuning.attention import PrefixStates, can_count, use_plain_attention, use_prefix_attention
from softlaunch.tuning.fingerprint import fingerprint
from softlaunch.tuning.prefix_encoder import PrefixConfig, PrefixEncoder

LORA_FOLDER = "lora"  # of the directory that a model was saved in, for the LoRA under its prefixes


def lora_beside(directory: Path) -> Path | None:
    """Where the LoRA lies that was saved with the prefix in `directory`; None where there is none.

    That of `default` is in `lora/`; that of another name beside the prefix's own folder, in `lora/NAME`.
    """
    for folder in (directory / LORA_FOLDER, directory.parent / LORA_FOLDER / directory.name):
        if (folder / CONFIG_FILE).is_file():
            return folder
    return None


class PrefixModel(PeftModel):
    """A frozen base with one or more prefixes, one of them active. Trainer, Accelerate and the hub see a PEFT model.

    `base_model` is the base, or an `AdapterModel` of it: LoRA under a prefix, saved and loaded with it.

    Every call of the base, `generate` included, gets the active prefix; inside `disable_adapter()` none. A call in
    which the prefix does not reach every layer raises RuntimeError. (One exception: a training step under
    `torch.compile` is not checked; an evaluation or generation is.)
    """

    base_model: PreTrainedModel | AdapterModel
    prefix_encoder: nn.ModuleDict

    def __init__(
        self,
        model: PreTrainedModel | AdapterModel,
        peft_config: PrefixConfig,
        adapter_name: str = "default",
        **_: Any,
    ):
        base: Any = model.get_base_model() if isinstance(model, AdapterModel) else model.requires_grad_(False)
        self._attention = use_prefix_attention(base)
        self._generation_states: PrefixStates | None = None
        super().__init__(model, peft_config, adapter_name)
        self._base_hooks = [
            base.register_forward_pre_hook(self._insert_prefix, with_kwargs=True),
            base.register_forward_hook(self._check_prefix, with_kwargs=True),
        ]

    def get_base_model(self) -> PreTrainedModel:
        """The base itself, also where LoRA lies between."""
        return cast(PreTrainedModel, self.lora.get_base_model() if self.lora else self.base_model)

    @property
    def lora(self) -> AdapterModel | None:
        """What of PEFT's own methods works under the prefix."""
        return self.base_model if isinstance(self.base_model, AdapterModel) else None

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
        if kwargs.get("prefix_states") is not None:
            raise RuntimeError(
                "this base carries the prefix of another PrefixModel already; call unload() on that one, or keep it "
                "and give it the second prefix with its load_adapter(directory, name)"
            )
        if base.config._attn_implementation != self._attention:
            raise RuntimeError(
                f"the prefix is attached but not in force: the attention implementation is now "
                f"{base.config._attn_implementation!r} instead of {self._attention!r}. It was changed after the prefix "
                "was added, or a second model was made from the same config object (give it a copy.deepcopy of it)"
            )
        states = self._generation_states or self.prefix_states()
        return args, {**kwargs, **_positions(base, args, kwargs), "prefix_states": states}

    def _check_prefix(self, base: Any, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        states: PrefixStates | None = kwargs.get("prefix_states")
        if states is None or not can_count(base):
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
        """Inside, the base answers as if there were no prefix, and no LoRA under it."""
        with self.disable_prefix(), self.lora.disable_adapter() if self.lora else nullcontext():
            yield

    @contextmanager
    def disable_prefix(self) -> Iterator[None]:
        """Inside, there is no prefix; LoRA under it, if there is some, stays."""
        before, self._adapters_disabled = self._adapters_disabled, True
        try:
            yield
        finally:
            self._adapters_disabled = before

    def unload(self) -> PreTrainedModel:
        """The base without any prefix and free for another one, still frozen; this object is of no use afterwards."""
        for hook in self._base_hooks:
            hook.remove()
        use_plain_attention(self.get_base_model())
        return cast(Any, self.lora).unload() if self.lora else self.get_base_model()

    # -- gradient checkpointing

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """As the base's, but always non-reentrant; raises ArgumentError when `use_reentrant` is asked for.

        A reentrant checkpoint runs its own backward pass, after which nothing of the prefix is left for the next layer.
        """
        options = activation_checkpointing_kwargs or {}
        if options.get("use_reentrant"):
            raise ArgumentError(
                "P-Tuning v2 needs non-reentrant checkpointing: leave use_reentrant out or set it to false"
            )
        base = self.get_base_model()
        # The second name is that of transformers before it spoke of activation checkpointing
        enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
        enable({**options, "use_reentrant": False}, **kwargs)
        # The prefix enters every layer by itself. That the base makes its embeddings require gradients serves reentrant
        # checkpoints alone; it costs a backward pass through the first layer, and torch.compile cannot trace it.
        base.disable_input_require_grads()

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """The older name of `activation_checkpointing_enable`."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, **kwargs)

    def prepare_model_for_gradient_checkpointing(self, model: PreTrainedModel) -> PreTrainedModel:
        """Nothing to prepare: see `activation_checkpointing_enable`."""
        return model

    # -- several adapters

    def add_adapter(self, adapter_name: str, peft_config: PrefixConfig, **_: Any) -> None:  # type: ignore[override]
        """Add a randomly initialised prefix; it is not made active."""
        if adapter_name in self.peft_config:
            raise ValueError(f"an adapter named {adapter_name!r} exists already")
        if "prefix_encoder" not in self._modules:
            self.prefix_encoder = nn.ModuleDict()
        peft_config.base_model_name_or_path = peft_config.base_model_name_or_path or self.get_base_model().name_or_path
        encoder = PrefixEncoder(peft_config).to(self.get_base_model().device)
        encoder.requires_grad_(adapter_name == self.active_adapter and not peft_config.inference_mode)
        self.prefix_encoder[adapter_name] = encoder
        self.peft_config[adapter_name] = peft_config

    def set_adapter(self, adapter_name: str, inference_mode: bool = False) -> None:
        """Make the prefix of this name active, the LoRA of this name, or both; trainable unless `inference_mode`, and
        the others of the kind are frozen.
        """
        self._require(adapter_name)
        if adapter_name in self.peft_config:
            self.set_prefix(adapter_name, inference_mode)
        if self.lora and adapter_name in self.lora.peft_config:
            self.lora.set_adapter(adapter_name, inference_mode=inference_mode)

    def set_prefix(self, adapter_name: str, inference_mode: bool = False) -> None:
        """As `set_adapter`, but LoRA stays as it is."""
        self.active_adapter = adapter_name
        for name, encoder in self.prefix_encoder.items():
            encoder.requires_grad_(name == adapter_name and not inference_mode)

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove the prefix of this name, the LoRA of this name, or both; the active prefix cannot be deleted."""
        self._require(adapter_name)
        if adapter_name == self.active_adapter:
            raise ArgumentError(
                "{name!r} is active; make another adapter active before you delete it", name=adapter_name
            )
        if adapter_name in self.peft_config:
            del self.prefix_encoder[adapter_name], self.peft_config[adapter_name]
        if self.lora and list(self.lora.peft_config) == [adapter_name]:
            self.base_model = cast(Any, self.lora).unload()
        elif self.lora and adapter_name in self.lora.peft_config:
            self.lora.delete_adapter(adapter_name)

    def _require(self, adapter_name: str) -> None:
        require_adapter(adapter_name, [*self.peft_config, *(self.lora.peft_config if self.lora else ())])

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
                config.base_fingerprint = fingerprint(self.get_base_model())
            formats.write_prefix(tensors, config, folder)
        if self.lora:
            beneath = state_dict and {k.removeprefix("base_model."): v for k, v in state_dict.items()}
            self.lora.save_pretrained(Path(save_directory) / LORA_FOLDER, state_dict=beneath)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        model: PreTrainedModel | AdapterModel,
        model_id: str | Path,
        adapter_name: str = "default",
        is_trainable: bool = False,
        num_virtual_tokens: int | None = None,
        **_: Any,
    ) -> "PrefixModel":
        """As `softlaunch.tuning.load_adapter`."""
        base: Any = model.get_base_model() if isinstance(model, AdapterModel) else model
        saved = formats.read_prefix(base, model_id, num_virtual_tokens)
        saved.config.inference_mode = not is_trainable
        tuned = cls(model, saved.config, adapter_name)
        tuned.encoder(adapter_name).load_state_dict(saved.tensors)
        return tuned

    def load_adapter(  # type: ignore[override]
        self, model_id: str | Path, adapter_name: str, is_trainable: bool = False, **_: Any
    ) -> None:
        """Read an adapter directory into `adapter_name`, new or existing; trainability of an existing one is kept.

        LoRA that was saved with the prefix is read too, under the same name.
        """
        saved = formats.read_prefix(self.get_base_model(), model_id)
        if adapter_name not in self.peft_config:
            saved.config.inference_mode = not is_trainable
            self.add_adapter(adapter_name, saved.config)
        self.encoder(adapter_name).load_state_dict(saved.tensors)
        beneath = lora_beside(Path(model_id))
        if beneath is not None:
            if self.lora is None:
                config = read_config(beneath, trainable=is_trainable)
                self.base_model = AdapterModel(self.get_base_model(), config, adapter_name)
            cast(AdapterModel, self.lora).load_adapter(beneath, adapter_name, is_trainable)


def _positions(base: Any, args: tuple, kwargs: dict[str, Any]) -> dict[str, torch.Tensor]:
    """`position_ids` counted from each row's first real token, where the caller gave none.

    A rotary model alone sees only differences of positions, so left padding may shift them. The prefix keys are not
    rotated: to them a shift is another position.
    """
    mask = kwargs.get("attention_mask")
    has_own = kwargs.get("position_ids") is not None or getattr(base.base_model, "rotary_emb", None) is None
    if has_own or not isinstance(mask, torch.Tensor) or mask.dim() != 2:
        return {}
    inputs = args[0] if args else kwargs.get("input_ids")
    inputs = kwargs["inputs_embeds"] if inputs is None else inputs
    return {"position_ids": (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -inputs.shape[1] :]}

"""What a P-Tuning v2 adapter is: its configuration and its trainable table (arXiv:2110.07602)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from peft import PeftConfig
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from softlaunch.errors import ArgumentError
from softlaunch.tuning.rotary import rotate_keys
from softlaunch.tuning.split import gathered_in_turn

PEFT_TYPE = "P_TUNING_V2"  # not PREFIX_TUNING: PEFT computes another function from the same numbers, see formats.py

Initialisation = Literal["random", "zero", "text"]


@dataclass
class PrefixConfig(PeftConfig):
    """The shape of a prefix and the base it was made for; the content of `adapter_config.json`."""

    num_virtual_tokens: int = 128
    num_layers: int = 0
    num_kv_heads: int = 0
    head_dim: int = 0
    prefix_projection: bool = False
    projection_size: int = 0
    prefix_dropout: float = 0.1
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "the head of a classifier"})
    base_fingerprint: list[float] | None = field(default=None, metadata={"help": "of `tuning.fingerprint`"})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PEFT_TYPE

    @property
    def is_prompt_learning(self) -> bool:
        """The base model stays as it is, nothing is injected into it: what PEFT means by prompt learning."""
        return True

    @property
    def table_size(self) -> int:
        """Numbers per virtual token: a key and a value for every layer and kv head."""
        return self.num_layers * 2 * self.num_kv_heads * self.head_dim


def kv_shape(config: PretrainedConfig) -> tuple[int, int, int]:
    """(num_layers, num_kv_heads, head_dim) of the attention that `config` describes."""
    config = config.get_text_config()
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return config.num_hidden_layers, kv_heads, head_dim


class PrefixEncoder(nn.Module):
    """The trainable table, float32 whatever the base is.

    `embedding.weight` is (num_virtual_tokens, num_layers * 2 * num_kv_heads * head_dim): for every virtual token the
    key and the value of layer 0, then of layer 1, … With `prefix_projection` it goes through an MLP (`trans`) of the
    same width on both sides. Names and shapes are those of ChatGLM2's own scripts.
    """

    def __init__(self, config: PrefixConfig):
        super().__init__()
        self.config = config
        width = config.table_size
        self.embedding = nn.Embedding(config.num_virtual_tokens, width, dtype=torch.float32)
        self.register_buffer("virtual_tokens", torch.arange(config.num_virtual_tokens), persistent=False)
        self.trans: nn.Sequential | None = None
        if config.prefix_projection:
            self.trans = nn.Sequential(
                nn.Linear(width, config.projection_size, dtype=torch.float32),
                nn.Tanh(),
                nn.Linear(config.projection_size, width, dtype=torch.float32),
            )

    def forward(self) -> torch.Tensor:
        """Keys and values (num_layers, 2, num_kv_heads, num_virtual_tokens, head_dim), float32."""
        config = self.config
        table = self.embedding(self.virtual_tokens)  # not its weight: ZeRO-3 gathers that when the module is called
        if self.trans is not None:
            with torch.autocast(table.device.type, enabled=False):
                table = self.trans(table)
        # In half precision DeepSpeed rounds the parameters and trains float32 copies of its own
        shape = (config.num_virtual_tokens, config.num_layers, 2, config.num_kv_heads, config.head_dim)
        table = table.float().view(shape)
        return table.permute(1, 2, 3, 0, 4)

    @torch.no_grad()
    def set_states(self, states: torch.Tensor) -> None:
        """Make `forward` return `states`; not possible with a projection, which has no inverse."""
        assert self.trans is None, "a projected prefix cannot be set"
        self.embedding.weight.copy_(states.permute(3, 0, 1, 2, 4).reshape(self.embedding.weight.shape))

    @torch.no_grad()
    def set_zero(self) -> None:
        """Make `forward` return zeros. Not a neutral prefix: zero keys still take their share of the softmax."""
        last = self.embedding if self.trans is None else self.trans[-1]
        for parameter in last.parameters():
            parameter.zero_()


@torch.no_grad()
def text_states(model: PreTrainedModel, input_ids: Sequence[int]) -> torch.Tensor:
    """The keys and values that `model` computes for a text, as prefix states of as many virtual tokens as ids.

    With them a causal RoPE model answers just as it does with that text in front. The cached key of token j was turned
    by its position j; real tokens will again be counted from 0, so all keys are turned back by the number of tokens.

    Raises ArgumentError for encoders, which see the whole text at once, and for texts longer than a sliding window.
    """
    if not getattr(model.config, "is_decoder", False) and not model.can_generate():
        raise ArgumentError(
            "{kind} is no causal model: initialise its prefix with 'random' or 'zero'",
            kind=type(model).__name__,
        )
    training = model.training
    ids = torch.tensor([list(input_ids)], device=model.device)
    with gathered_in_turn(model):
        cache = model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True).past_key_values
    model.train(training)
    num_tokens = ids.shape[1]
    if any(layer.keys.shape[-2] != num_tokens for layer in cache.layers):
        raise ArgumentError(
            "the text has {num_tokens} tokens, more than the sliding window of {kind}; shorten it",
            num_tokens=num_tokens,
            kind=type(model).__name__,
        )
    states = torch.stack([torch.stack([layer.keys[0], layer.values[0]]).float().cpu() for layer in cache.layers])
    states[:, 0] = rotate_keys(model, states[:, 0].to(model.device), -num_tokens).cpu()
    return states

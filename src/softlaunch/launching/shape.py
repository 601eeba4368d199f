"""A model's network as its `config.json` describes it: the sizes of its matrices, and how many numbers it holds.

Counts are exact for the architectures below; a test compares them with models on the meta device.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softlaunch.errors import CheckpointError


@dataclass(frozen=True)
class ModelShape:
    """A decoder with grouped-query attention and a gated MLP.

    `matrices`: of every linear layer in a block (inputs, outputs). `other_parameters`: a block's biases and norms.
    """

    model_type: str
    num_layers: int
    hidden_size: int
    ffn_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_length: int
    matrices: dict[str, tuple[int, int]]
    other_parameters: int
    num_norms: int  # RMSNorms over the hidden size in a block
    normalizes_heads: bool  # RMSNorms over queries and keys
    tied: bool

    @property
    def query_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Numbers per token in a layer's keys, and in its values."""
        return self.num_kv_heads * self.head_dim

    @property
    def matrix_parameters(self) -> int:
        """In one block's linear layers, which are what quantization packs."""
        return sum(inputs * outputs for inputs, outputs in self.matrices.values())

    @property
    def block_parameters(self) -> int:
        return self.matrix_parameters + self.other_parameters

    @property
    def head_parameters(self) -> int:
        """Embedding, output layer (once if tied) and the last norm."""
        return (1 if self.tied else 2) * self.vocab_size * self.hidden_size + self.hidden_size

    @property
    def parameters(self) -> int:
        return self.num_layers * self.block_parameters + self.head_parameters


def read_shape(directory: str | Path) -> ModelShape:
    """The shape of the checkpoint in `directory`, as released or in transformers' layout.

    Raises CheckpointError when there is no readable config.json, or when it describes an architecture whose sizes are
    not known here.
    """
    file = Path(directory) / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(
            "{file} cannot be read ({error}). A plan needs the checkpoint's config.json on this machine, not its "
            "weights: fetch that one file, or give the directory as --model_name_or_path",
            file=file,
            error=error.strerror,
        ) from None
    except ValueError as error:
        raise CheckpointError("{file} is no valid JSON: {error}", file=file, error=error) from None
    family = str(config.get("model_type"))
    if family not in _FAMILIES:
        raise CheckpointError(
            "{file}: model_type {family!r} is none whose sizes are known; known are {known}",
            file=file,
            family=family,
            known=", ".join(sorted(_FAMILIES)),
        )
    try:
        return _FAMILIES[family](config)
    except KeyError as error:
        raise CheckpointError("{file}: {key} is missing", file=file, key=error) from None


def _released_chatglm(config: dict[str, Any]) -> ModelShape:
    heads = config["num_attention_heads"]
    translated = {
        "model_type": "chatglm",
        "num_hidden_layers": config["num_layers"],
        "hidden_size": config["hidden_size"],
        "intermediate_size": config["ffn_hidden_size"],
        "num_attention_heads": heads,
        "num_key_value_heads": config["multi_query_group_num"] if config.get("multi_query_attention") else heads,
        "head_dim": config["kv_channels"],
        "vocab_size": config["padded_vocab_size"],
        "max_position_embeddings": config["seq_length"],
        "attention_bias": config.get("add_qkv_bias", False),
        "tie_word_embeddings": False,
    }
    return _glm(translated)


def _glm(config: dict[str, Any]) -> ModelShape:
    return _decoder(config, qkv_bias=bool(config.get("attention_bias")), fused_mlp=True)


def _glm4(config: dict[str, Any]) -> ModelShape:
    return _decoder(config, qkv_bias=bool(config.get("attention_bias")), fused_mlp=True, num_norms=4)


def _llama(config: dict[str, Any]) -> ModelShape:
    bias = bool(config.get("attention_bias"))
    return _decoder(config, qkv_bias=bias, output_bias=bias, mlp_bias=bool(config.get("mlp_bias")))


def _qwen2(config: dict[str, Any]) -> ModelShape:
    return _decoder(config, qkv_bias=True)


def _qwen3(config: dict[str, Any]) -> ModelShape:
    bias = bool(config.get("attention_bias"))
    return _decoder(config, qkv_bias=bias, output_bias=bias, normalizes_heads=True, head_dim=128)


_FAMILIES: dict[str, Callable[[dict[str, Any]], ModelShape]] = {
    "chatglm": _released_chatglm,
    "glm": _glm,
    "glm4": _glm4,
    "llama": _llama,
    "mistral": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
}


def _decoder(
    config: dict[str, Any],
    *,
    qkv_bias: bool = False,
    output_bias: bool = False,
    mlp_bias: bool = False,
    fused_mlp: bool = False,
    num_norms: int = 2,
    normalizes_heads: bool = False,
    head_dim: int | None = None,
) -> ModelShape:
    hidden, ffn, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    head_dim = config.get("head_dim") or head_dim or hidden // heads
    q, kv = heads * head_dim, kv_heads * head_dim
    gate_and_up = (
        {"gate_up_proj": (hidden, 2 * ffn)} if fused_mlp else dict.fromkeys(("gate_proj", "up_proj"), (hidden, ffn))
    )
    matrices = {
        "q_proj": (hidden, q),
        "k_proj": (hidden, kv),
        "v_proj": (hidden, kv),
        "o_proj": (q, hidden),
        **gate_and_up,
        "down_proj": (ffn, hidden),
    }
    biases = qkv_bias * (q + 2 * kv) + output_bias * hidden + mlp_bias * (2 * ffn + hidden)
    return ModelShape(
        model_type=config["model_type"],
        num_layers=config["num_hidden_layers"],
        hidden_size=hidden,
        ffn_size=ffn,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=config["vocab_size"],
        max_length=config.get("max_position_embeddings", 0),
        matrices=matrices,
        other_parameters=biases + num_norms * hidden + normalizes_heads * 2 * head_dim,
        num_norms=num_norms,
        normalizes_heads=normalizes_heads,
        tied=bool(config.get("tie_word_embeddings", False)),
    )

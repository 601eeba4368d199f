"""A model's network as its `config.json` describes it: the sizes of its matrices, and how many numbers it holds.

Counts are exact for the architectures below; a test compares them with models on the meta device.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softlaunch.errors import CheckpointError
from softlaunch.files import read_safetensors_header

_SIZES = {
    *("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size"),
    *("num_hidden_layers", "max_position_embeddings", "type_vocab_size", "num_layers", "ffn_hidden_size"),
    *("multi_query_group_num", "kv_channels", "padded_vocab_size", "seq_length"),
}


class UnknownSize(CheckpointError):
    """Something that a plan cannot tell; the run itself may be fine."""


@dataclass(frozen=True)
class ModelShape:
    """A decoder with grouped-query attention and a gated MLP, or an encoder of texts that tells classes apart.

    `matrices`: of every linear layer in a block (inputs, outputs). `other_parameters`: a block's biases and norms.
    `outer_parameters`: what stands outside of the blocks, with the `head_parameters` of an encoder's new head.
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
    num_norms: int  # over the hidden size in a block
    normalizes_heads: bool  # RMSNorms over queries and keys
    outer_parameters: int
    is_encoder: bool = False
    head_parameters: int = 0

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
    def parameters(self) -> int:
        return self.num_layers * self.block_parameters + self.outer_parameters


def read_shape(directory: str | Path, num_labels: int | None = None) -> ModelShape:
    """The shape of the checkpoint in `directory`, as released or in transformers' layout.

    `num_labels`: the classes that an encoder is to tell apart; as many as its config has if None. Raises
    CheckpointError when there is no readable config.json, or when it describes an architecture whose sizes are not
    known here (UnknownSize).
    """
    file = Path(directory) / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UnknownSize(
            "{file} cannot be read ({error}). A plan needs the checkpoint's config.json on this machine, not its "
            "weights: fetch that one file, or give the directory as --model_name_or_path",
            file=file,
            error=error.strerror,
        ) from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError("{file} is no valid JSON: {error}", file=file, error=error) from None
    if not isinstance(config, dict):
        raise CheckpointError("{file}: expected a JSON object", file=file)
    family = str(config.get("model_type"))
    if family == "chatglm" and "position_encoding_2d" in config:
        raise CheckpointError(
            "{file} is a ChatGLM-6B of the first generation, which cannot be trained here; ChatGLM2, ChatGLM3 and "
            "GLM-4 can",
            file=file,
        )
    if num_labels is not None:
        config["id2label"] = dict.fromkeys(map(str, range(num_labels)))
    if family not in _FAMILIES:
        raise UnknownSize(
            "{file}: model_type {family!r} is none whose sizes are known; known are {known}",
            file=file,
            family=family,
            known=", ".join(sorted(_FAMILIES)),
        )
    config = {key: value for key, value in config.items() if value is not None or key not in _SIZES}
    for key in sorted(_SIZES & config.keys()):
        value = config[key]
        if type(value) is not int or value < 1:
            raise CheckpointError(
                "{file}: {key} is {value!r}; it must be a whole number of at least 1", file=file, key=key, value=value
            )
    config["lacks_pooler"] = _lacks_pooler(Path(directory) / "model.safetensors")
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


def _bert(config: dict[str, Any]) -> ModelShape:
    """Its classifier is one layer behind the pooler, which is new too where masked words alone were learnt."""
    hidden = config["hidden_size"]
    pooler, classifier = hidden * hidden + hidden, _num_labels(config) * (hidden + 1)
    new = config["lacks_pooler"]
    return _encoder(config, outer=0 if new else pooler, head=classifier + (pooler if new else 0))


def _roberta(config: dict[str, Any]) -> ModelShape:
    """Without a pooler; its classifier is two layers."""
    hidden = config["hidden_size"]
    return _encoder(config, outer=0, head=hidden * hidden + hidden + _num_labels(config) * (hidden + 1))


def _lacks_pooler(weights: Path) -> bool:
    """By the names in the head of the file; without such a file the pooler is taken to be there."""
    try:
        names, _ = read_safetensors_header(weights)
    except (OSError, ValueError):
        return False
    return not any("pooler" in name for name in names)


def _num_labels(config: dict[str, Any]) -> int:
    labels = config.get("id2label")
    return len(labels) if isinstance(labels, dict) and labels else 2


ENCODERS: dict[str, Callable[[dict[str, Any]], ModelShape]] = {
    "bert": _bert,
    "roberta": _roberta,
    "xlm-roberta": _roberta,
}
_FAMILIES: dict[str, Callable[[dict[str, Any]], ModelShape]] = {
    "chatglm": _released_chatglm,
    "glm": _glm,
    "glm4": _glm4,
    "llama": _llama,
    "mistral": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    **ENCODERS,
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
    tied = bool(config.get("tie_word_embeddings", False))
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
        outer_parameters=(1 if tied else 2) * config["vocab_size"] * hidden + hidden,
    )


def _encoder(config: dict[str, Any], *, outer: int, head: int) -> ModelShape:
    hidden, ffn, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    positions = config["max_position_embeddings"]
    embeddings = config["vocab_size"] + positions + config.get("type_vocab_size", 2)
    matrices = {
        **dict.fromkeys(("query", "key", "value", "attention.output.dense"), (hidden, hidden)),
        "intermediate.dense": (hidden, ffn),
        "output.dense": (ffn, hidden),
    }
    return ModelShape(
        model_type=config["model_type"],
        num_layers=config["num_hidden_layers"],
        hidden_size=hidden,
        ffn_size=ffn,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        vocab_size=config["vocab_size"],
        max_length=positions,
        matrices=matrices,
        other_parameters=sum(outputs for _, outputs in matrices.values()) + 2 * 2 * hidden,
        num_norms=2,
        normalizes_heads=False,
        outer_parameters=(embeddings + 2) * hidden + outer + head,
        is_encoder=True,
        head_parameters=head,
    )

"""Small base models for the tests: the recorded ChatGLM2/3 ones, and random ones of the other families."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Glm4Config,
    GlmConfig,
    LlamaConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

GOLDENS = Path(__file__).parent / "goldens"
PREFIX_KEYS = "transformer.prefix_encoder."


@dataclass
class Golden:
    """One recorded model: `meta` is its JSON, `tensors` its safetensors file."""

    meta: dict[str, Any]
    tensors: dict[str, torch.Tensor]

    @classmethod
    def read(cls, name: str) -> "Golden":
        meta = json.loads((GOLDENS / f"{name}.json").read_text(encoding="utf-8"))
        return cls(meta, load_file(GOLDENS / f"{name}.safetensors"))

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """The checkpoint under its original key names, without a prefix."""
        weights = {k.removeprefix("model."): v for k, v in self.tensors.items() if k.startswith("model.")}
        return {k: v for k, v in weights.items() if not k.startswith(PREFIX_KEYS)}

    @property
    def prefix(self) -> dict[str, torch.Tensor]:
        """The state dict of the original's prefix encoder."""
        start = "model." + PREFIX_KEYS
        return {k.removeprefix(start): v for k, v in self.tensors.items() if k.startswith(start)}

    def write(self, directory: Path) -> Path:
        """The checkpoint as one safetensors file in the released layout."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "config.json").write_text(json.dumps(self.meta["config"]), encoding="utf-8")
        save_file(self.weights, directory / "model.safetensors", metadata={"format": "pt"})
        return directory

    def write_sharded_bin(self, directory: Path) -> Path:
        """The checkpoint as two `.bin` shards with an index, as ChatGLM2-6B was first released."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "config.json").write_text(json.dumps(self.meta["config"]), encoding="utf-8")
        keys = sorted(self.weights)
        index = {}
        for number, part in enumerate((keys[: len(keys) // 2], keys[len(keys) // 2 :]), start=1):
            name = f"pytorch_model-{number:05d}-of-00002.bin"
            torch.save({k: self.weights[k] for k in part}, directory / name)
            index |= dict.fromkeys(part, name)
        (directory / "pytorch_model.bin.index.json").write_text(
            json.dumps({"metadata": {}, "weight_map": index}), encoding="utf-8"
        )
        return directory


_SHAPE: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}

CONFIGS = {
    "glm": lambda: GlmConfig(**_SHAPE, attention_bias=True, attention_dropout=0.0),  # GLM-4-9B
    "glm4": lambda: Glm4Config(**_SHAPE, attention_bias=True, attention_dropout=0.0),  # GLM-4-0414
    "llama": lambda: LlamaConfig(**_SHAPE),
    "qwen2_sliding": lambda: Qwen2Config(
        **_SHAPE, use_sliding_window=True, sliding_window=24, max_window_layers=1, attention_dropout=0.0
    ),
    "qwen3": lambda: Qwen3Config(**_SHAPE),
}


def random_base(family: str, attn_implementation: str = "sdpa", seed: int = 0) -> PreTrainedModel:
    """A random model of `family`, with weights large enough that its answers differ from prompt to prompt."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIGS[family](), attn_implementation=attn_implementation)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.15)
            elif "norm" not in name:
                parameter.normal_(std=0.1)
    return model.eval()


# The fields of GLM-4-9B-Chat's config.json that its network depends on, with a small shape. All inputs of linear layers
# are multiples of 64, as 4-bit layers on the CPU need it.
RELEASED_GLM4: dict[str, Any] = {
    "model_type": "chatglm",
    "num_layers": 3,
    "padded_vocab_size": 96,
    "hidden_size": 64,
    "ffn_hidden_size": 128,
    "kv_channels": 16,
    "num_attention_heads": 4,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "seq_length": 131072,
    "layernorm_epsilon": 1.5625e-07,
    "rope_ratio": 500,
    "original_rope": True,
    "rmsnorm": True,
    "post_layer_norm": True,
    "apply_residual_connection_post_layernorm": False,
    "fp32_residual_connection": False,
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "attention_dropout": 0.0,
    "hidden_dropout": 0.0,
    "eos_token_id": [2, 7, 9],
    "pad_token_id": 2,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


def released_weights(config: dict[str, Any], dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Random weights for a released `config.json`, under the released key names."""
    torch.manual_seed(0)
    hidden, ffn, vocab = config["hidden_size"], config["ffn_hidden_size"], config["padded_vocab_size"]
    heads = config["num_attention_heads"] + 2 * config["multi_query_group_num"]
    shapes: dict[str, tuple[int, ...]] = {
        "embedding.word_embeddings.weight": (vocab, hidden),
        "encoder.final_layernorm.weight": (hidden,),
        "output_layer.weight": (vocab, hidden),
    }
    for index in range(config["num_layers"]):
        layer = f"encoder.layers.{index}"
        shapes |= {
            f"{layer}.input_layernorm.weight": (hidden,),
            f"{layer}.self_attention.query_key_value.weight": (heads * config["kv_channels"], hidden),
            f"{layer}.self_attention.query_key_value.bias": (heads * config["kv_channels"],),
            f"{layer}.self_attention.dense.weight": (hidden, config["num_attention_heads"] * config["kv_channels"]),
            f"{layer}.post_attention_layernorm.weight": (hidden,),
            f"{layer}.mlp.dense_h_to_4h.weight": (2 * ffn, hidden),
            f"{layer}.mlp.dense_4h_to_h.weight": (hidden, ffn),
        }
    weights = {f"transformer.{name}": torch.randn(shape) * 1.2 / hidden**0.5 for name, shape in shapes.items()}
    return {name: (w + 1 if "norm" in name else w).to(dtype) for name, w in weights.items()}


def write_released(
    directory: Path, config: dict[str, Any], num_shards: int = 1, dtype: torch.dtype = torch.float32
) -> Path:
    """A random checkpoint in the released layout, as safetensors shards with an index."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    weights = released_weights(config, dtype)
    names, index = list(weights), {}
    for number in range(num_shards):
        file = f"model-{number + 1:05d}-of-{num_shards:05d}.safetensors"
        part = names[number * len(names) // num_shards : (number + 1) * len(names) // num_shards]
        save_file({name: weights[name] for name in part}, directory / file, metadata={"format": "pt"})
        index |= dict.fromkeys(part, file)
    text = json.dumps({"metadata": {}, "weight_map": index})
    (directory / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    return directory


def batch(rows: list[list[int]], side: str) -> dict[str, torch.Tensor]:
    """Token ids and mask, padded with 0 on `side`."""
    longest = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), longest, dtype=torch.long), torch.zeros(len(rows), longest, dtype=torch.long)
    for i, row in enumerate(rows):
        where = slice(longest - len(row), longest) if side == "left" else slice(0, len(row))
        ids[i, where], mask[i, where] = torch.tensor(row), 1
    return {"input_ids": ids, "attention_mask": mask}

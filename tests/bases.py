"""Small base models for the tests: the recorded ChatGLM2/3 ones, and random ones of the other families."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GlmConfig, LlamaConfig, PreTrainedModel, Qwen2Config, Qwen3Config

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
    "glm": lambda: GlmConfig(**_SHAPE, attention_bias=True, attention_dropout=0.0),
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


def batch(rows: list[list[int]], side: str) -> dict[str, torch.Tensor]:
    """Token ids and mask, padded with 0 on `side`."""
    longest = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), longest, dtype=torch.long), torch.zeros(len(rows), longest, dtype=torch.long)
    for i, row in enumerate(rows):
        where = slice(longest - len(row), longest) if side == "left" else slice(0, len(row))
        ids[i, where], mask[i, where] = torch.tensor(row), 1
    return {"input_ids": ids, "attention_mask": mask}

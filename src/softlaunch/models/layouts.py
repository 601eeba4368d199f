"""The layout that ChatGLM2/3 and GLM-4 are released in and transformers' GLM layout: names and configs of both.

The network is the same, so nothing is computed between them: tensors have other names, and the fused `query_key_value`
of the release is q, k and v, one below the other.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import GlmConfig, GlmForCausalLM

from softlaunch.errors import CheckpointError
from softlaunch.files import write_json
from softlaunch.layer_names import counterparts

ROTARY_TABLE = "transformer.rotary_pos_emb.inv_freq"  # in every release; it follows from the config
_AUTO_MAP = {
    "AutoConfig": "configuration_chatglm.ChatGLMConfig",
    "AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration",
    "AutoModelForCausalLM": "modeling_chatglm.ChatGLMForConditionalGeneration",
    "AutoModelForSeq2SeqLM": "modeling_chatglm.ChatGLMForConditionalGeneration",
    "AutoModelForSequenceClassification": "modeling_chatglm.ChatGLMForSequenceClassification",
}


def released_config(config: GlmConfig) -> dict[str, Any]:
    """The `config.json` of a release for the same network: the reverse of `glm_config`.

    Raises CheckpointError for networks that the released code cannot compute.
    """
    rope = config.rope_parameters
    assert isinstance(rope, dict)
    requirements: dict[str, tuple[Any, Any]] = {
        "rope_type": (rope.get("rope_type"), "default"),
        "partial_rotary_factor": (rope.get("partial_rotary_factor"), 0.5),
        "hidden_act": (config.hidden_act, "silu"),
        "tie_word_embeddings": (config.tie_word_embeddings, False),
    }
    for key, (found, needed) in requirements.items():
        if found != needed:
            raise CheckpointError(
                "{key} is {found!r}; the released ChatGLM layout knows {needed!r} alone, this model has no place in it",
                key=key,
                found=found,
                needed=needed,
            )
    dtype = {} if config.dtype is None else {"torch_dtype": str(config.dtype).removeprefix("torch.")}
    return {
        **dtype,
        "model_type": "chatglm",
        "architectures": ["ChatGLMModel"],
        "auto_map": _AUTO_MAP,
        "add_bias_linear": False,
        "add_qkv_bias": config.attention_bias,
        "apply_query_key_layer_scaling": True,
        "apply_residual_connection_post_layernorm": False,
        "attention_dropout": config.attention_dropout,
        "attention_softmax_in_fp32": True,
        "bias_dropout_fusion": True,
        "ffn_hidden_size": config.intermediate_size,
        "fp32_residual_connection": False,
        "hidden_dropout": 0.0,
        "hidden_size": config.hidden_size,
        "kv_channels": config.head_dim,
        "layernorm_epsilon": config.rms_norm_eps,
        "rope_ratio": _rope_ratio(config),
        "multi_query_attention": True,
        "multi_query_group_num": config.num_key_value_heads,
        "num_attention_heads": config.num_attention_heads,
        "num_layers": config.num_hidden_layers,
        "original_rope": True,
        "padded_vocab_size": config.vocab_size,
        "post_layer_norm": True,
        "rmsnorm": True,
        "seq_length": config.max_position_embeddings,
        "use_cache": True,
        "tie_word_embeddings": False,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
    }


def write_glm_config(config: GlmConfig, directory: Path) -> None:
    """Write the `config.json` of transformers' layout.

    llama.cpp reads that layout too, but three numbers by their released names alone, with other defaults.
    """
    config.architectures = [GlmForCausalLM.__name__]
    config.save_pretrained(str(directory))
    file = directory / "config.json"
    numbers = {
        "layernorm_epsilon": config.rms_norm_eps,
        "rope_ratio": _rope_ratio(config),
        "seq_length": config.max_position_embeddings,
    }
    written = {**json.loads(file.read_text(encoding="utf-8")), **numbers}
    write_json(file, written)


def _rope_ratio(config: GlmConfig) -> float:
    rope: Any = config.rope_parameters
    ratio = float(rope["rope_theta"] or 0) / 10000
    return int(ratio) if ratio == int(ratio) else ratio


def released_tensors(tensors: Mapping[str, torch.Tensor], config: GlmConfig) -> dict[str, torch.Tensor]:
    """A whole model's tensors under the released names; `tensors` is the state dict of a `GlmForCausalLM`.

    Tensors keep dtype and device; they share memory with the given ones where nothing is fused.
    """
    released = {
        name: torch.cat([tensors[part] for part in parts]) if len(parts) > 1 else tensors[parts[0]]
        for name, parts in counterparts(config).items()
    }
    return {**released, ROTARY_TABLE: rotary_table(config).to(next(iter(released.values())).dtype)}


def rotary_table(config: GlmConfig) -> torch.Tensor:
    """The buffer (kv_channels / 4,) of the released code, which computes it anew; in the model's dtype."""
    head_dim: Any = config.head_dim
    exponents = torch.arange(0, head_dim // 2, 2, dtype=torch.float32) / (head_dim // 2)
    dtype = config.dtype if isinstance(config.dtype, torch.dtype) else getattr(torch, config.dtype or "float32")
    return (10000.0**-exponents).to(dtype)

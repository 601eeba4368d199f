"""ChatGLM2-6B, ChatGLM3-6B and GLM-4-9B checkpoints, as released, in transformers' own `GlmForCausalLM`.

They are the same network under other names: RMSNorm, grouped-query attention with biased q, k, v, rotary embedding on
the first half of each head in interleaved pairs, gated SiLU. `rope_ratio` (ChatGLM3, GLM-4) multiplies the rotary base.
The weights are renamed and the fused `query_key_value` is split while they are read, shard by shard; the same the other
way round when they are written in the released layout.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import GlmConfig, GlmForCausalLM
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import Concatenate, ConversionOps, WeightConverter, WeightRenaming

from softlaunch.errors import CheckpointError
from softlaunch.models.source import chatglm_6b

# The network that the released code also knows how to build, but that no release of the three uses.
_FIXED = {
    "rmsnorm": True,
    "post_layer_norm": True,
    "original_rope": True,
    "add_bias_linear": False,
    "apply_residual_connection_post_layernorm": False,
    "fp32_residual_connection": False,
}
_SIZES = ("num_attention_heads", "padded_vocab_size", "hidden_size", "ffn_hidden_size", "num_layers", "kv_channels")


def glm_config(released: dict[str, Any], path: str) -> GlmConfig:
    """The `GlmConfig` of a released `config.json` (`"model_type": "chatglm"`).

    Raises CheckpointError for ChatGLM-6B (v1), for weights that the original code quantized, and for variants of the
    network that `GlmForCausalLM` does not compute.
    """
    if "position_encoding_2d" in released or "num_layers" not in released or "ffn_hidden_size" not in released:
        raise chatglm_6b(path)
    for key, value in _FIXED.items():
        if released.get(key, value) != value:
            raise CheckpointError(
                "{path}/config.json: {key} is {found!r}, ChatGLM2, ChatGLM3 and GLM-4 have {expected!r}; this variant "
                "of the network is not supported.",
                path=path,
                key=key,
                found=released[key],
                expected=value,
            )
    grouped = released.get("multi_query_attention")
    for key in (*_SIZES, *(["multi_query_group_num"] if grouped else [])):
        if type(released.get(key)) is not int or released[key] < 1:
            raise CheckpointError(
                "{path}/config.json: {key} is {found!r}; expected is a whole number of at least 1",
                path=path,
                key=key,
                found=released.get(key),
            )
    try:
        return _glm_config(released, released["multi_query_group_num" if grouped else "num_attention_heads"])
    except Exception as error:  # whatever is raised for a value of another type
        raise CheckpointError(
            "{file}: this is no config of ChatGLM2, ChatGLM3 or GLM-4 ({reason}); fetch the file again",
            file=Path(path) / "config.json",
            reason=str(error).strip().partition("\n")[0],
        ) from error


def _glm_config(released: dict[str, Any], num_key_value_heads: int) -> GlmConfig:
    return GlmConfig(
        vocab_size=released["padded_vocab_size"],
        hidden_size=released["hidden_size"],
        intermediate_size=released["ffn_hidden_size"],
        num_hidden_layers=released["num_layers"],
        num_attention_heads=released["num_attention_heads"],
        num_key_value_heads=num_key_value_heads,
        head_dim=released["kv_channels"],
        rms_norm_eps=released["layernorm_epsilon"],
        attention_bias=released.get("add_qkv_bias", False),
        attention_dropout=released.get("attention_dropout", 0.0),
        max_position_embeddings=released["seq_length"],
        pad_token_id=released.get("pad_token_id", 0),
        bos_token_id=released.get("bos_token_id"),
        eos_token_id=released.get("eos_token_id", 2),
        tie_word_embeddings=False,  # some releases say true; the original code never tied them
        dtype=released.get("torch_dtype"),
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0 * released.get("rope_ratio", 1),
            "partial_rotary_factor": 0.5,
        },
    )


class SplitQueryKeyValue(ConversionOps):
    """Split the fused projection (q heads, then k groups, then v groups, along dim 0) into q, k and v.

    The sizes come from the config, not from the model's parameters as in transformers' `Split`: under ZeRO-3 a
    parameter of this rank may be empty.
    """

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        **kwargs: Any,
    ) -> dict[str, list[torch.Tensor]]:
        config = kwargs["config"]
        (tensors,) = input_dict.values()
        fused = tensors[0] if isinstance(tensors, list) else tensors
        q, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        parts = torch.split(fused, [q, kv, kv], dim=0)
        return {target: [part.contiguous()] for target, part in zip(target_patterns, parts, strict=True)}

    @property
    def reverse_op(self) -> ConversionOps:
        """How the released layout is written."""
        return Concatenate(dim=0)


def weight_transforms() -> list[WeightRenaming | WeightConverter]:
    """From the released key names to those of `GlmForCausalLM`."""
    attention = r"self_attention.query_key_value"
    return [
        WeightRenaming(r"^transformer.embedding.word_embeddings", "model.embed_tokens"),
        WeightRenaming(r"^transformer.encoder.final_layernorm", "model.norm"),
        WeightRenaming(r"^transformer.output_layer", "lm_head"),
        WeightRenaming(r"^transformer.encoder.layers", "model.layers"),
        WeightRenaming(r"self_attention.dense", "self_attn.o_proj"),
        WeightRenaming(r"mlp.dense_h_to_4h", "mlp.gate_up_proj"),
        WeightRenaming(r"mlp.dense_4h_to_h", "mlp.down_proj"),
        *(
            WeightConverter(
                f"{attention}.{kind}",
                [f"self_attn.{name}_proj.{kind}" for name in "qkv"],
                operations=[SplitQueryKeyValue()],
            )
            for kind in ("weight", "bias")
        ),
    ]


class ReleasedChatGLMForCausalLM(GlmForCausalLM):
    """`GlmForCausalLM` while it is read from a released checkpoint: the transforms belong to this name alone."""

    # The rotary table is computed, and a fine-tuned checkpoint of the original scripts also holds its prefix.
    _keys_to_ignore_on_load_unexpected = [r"rotary_pos_emb\.inv_freq", r"prefix_encoder\."]  # noqa: RUF012


def load_released_chatglm(path: str, released: dict[str, Any], **kwargs: Any) -> tuple[GlmForCausalLM, dict[str, Any]]:
    """Load a released ChatGLM2/3 or GLM-4 directory or hub id; returns the model and transformers' loading info.

    `kwargs` are those of `PreTrainedModel.from_pretrained`, with `output_loading_info=True`. Saving the model later
    writes transformers' own GLM layout.
    """
    register_checkpoint_conversion_mapping(ReleasedChatGLMForCausalLM.__name__, weight_transforms(), overwrite=True)
    loaded: Any = ReleasedChatGLMForCausalLM.from_pretrained(path, config=glm_config(released, path), **kwargs)
    model, info = loaded
    model.__class__ = GlmForCausalLM
    model._weight_conversions = None
    return model, info

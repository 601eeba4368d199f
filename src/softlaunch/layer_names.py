"""What the layers of the released ChatGLM2, ChatGLM3 and GLM-4 code are called in transformers' GLM."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import GlmConfig

# The linear layers of a block
RELEASED_LAYERS = {
    "query_key_value": ("q_proj", "k_proj", "v_proj"),
    "dense": ("o_proj",),
    "dense_h_to_4h": ("gate_up_proj",),
    "dense_4h_to_h": ("down_proj",),
}


def counterparts(config: "GlmConfig") -> dict[str, tuple[str, ...]]:
    """Every tensor's name in the released layout, and its name in transformers': three for the fused projection."""
    names: dict[str, tuple[str, ...]] = {
        "transformer.embedding.word_embeddings.weight": ("model.embed_tokens.weight",),
        "transformer.encoder.final_layernorm.weight": ("model.norm.weight",),
        "transformer.output_layer.weight": ("lm_head.weight",),
    }
    for index in range(config.num_hidden_layers):
        released, ours = f"transformer.encoder.layers.{index}", f"model.layers.{index}"
        names |= {
            f"{released}.input_layernorm.weight": (f"{ours}.input_layernorm.weight",),
            f"{released}.self_attention.dense.weight": (f"{ours}.self_attn.o_proj.weight",),
            f"{released}.post_attention_layernorm.weight": (f"{ours}.post_attention_layernorm.weight",),
            f"{released}.mlp.dense_h_to_4h.weight": (f"{ours}.mlp.gate_up_proj.weight",),
            f"{released}.mlp.dense_4h_to_h.weight": (f"{ours}.mlp.down_proj.weight",),
        }
        for kind in ("weight", "bias") if config.attention_bias else ("weight",):
            fused = f"{released}.self_attention.query_key_value.{kind}"
            names[fused] = tuple(f"{ours}.self_attn.{letter}_proj.{kind}" for letter in "qkv")
    return names


def projection_sizes(config: "GlmConfig") -> list[int]:
    """How many rows of the fused `query_key_value` are q, k and v."""
    shape: Any = config  # a GlmConfig has numbers here, whatever its annotations allow
    kv = shape.num_key_value_heads * shape.head_dim
    return [shape.num_attention_heads * shape.head_dim, kv, kv]

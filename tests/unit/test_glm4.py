"""GLM-4-9B as released: its layout in transformers' classes, its tokenizer file as a fast tokenizer."""

import json
import re

import pytest
import torch
from transformers import AutoTokenizer, GlmConfig, GlmForCausalLM

from softlaunch.data.encode import EncodeOptions, encode_for_generation, encode_for_training
from softlaunch.errors import ArgumentError, CheckpointError
from softlaunch.models import load_model, load_tokenizer
from softlaunch.models.chatglm import glm_config
from softlaunch.models.tiktoken_tokenizer import build_glm4, is_tiktoken
from tests.bases import GOLDENS, RELEASED_GLM4, batch, released_weights, write_released
from tests.tokenizer_files import sentencepiece_model

VOCABULARY = GOLDENS / "glm4_small.tiktoken"
RECORDED = json.loads((GOLDENS / "glm4_small.json").read_text(encoding="utf-8"))
NUM_RANKS = 900


@pytest.fixture(scope="module")
def tokenizer():
    return build_glm4(VOCABULARY, name_or_path="THUDM/glm-4-9b-chat")


# -- weights and config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_attention_heads": 0}, "num_attention_heads is 0; expected is a whole number of at least 1"),
        ({"hidden_size": "64"}, "hidden_size is '64'; expected is a whole number"),
        ({"multi_query_group_num": None}, "multi_query_group_num is None"),
        ({"rope_ratio": "x"}, "this is no config of ChatGLM2, ChatGLM3 or GLM-4"),
        ({"layernorm_epsilon": [1]}, "this is no config of ChatGLM2, ChatGLM3 or GLM-4"),
    ],
)
def test_a_broken_config_is_told(change, message):
    with pytest.raises(CheckpointError, match=re.escape(message)):
        glm_config({**RELEASED_GLM4, **change}, "base")


def test_config_is_that_of_the_official_conversion():
    """`GlmConfig()` has GLM-4-9B-Chat's own numbers as its defaults, but for the rotary base."""
    full_size = {
        "num_layers": 40,
        "padded_vocab_size": 151552,
        "hidden_size": 4096,
        "ffn_hidden_size": 13696,
        "kv_channels": 128,
        "num_attention_heads": 32,
        "eos_token_id": [151329, 151336, 151338],
        "pad_token_id": 151329,
    }
    ours, official = glm_config({**RELEASED_GLM4, **full_size}, "GLM-4-9B").to_dict(), GlmConfig().to_dict()
    rope = ours.pop("rope_parameters")
    assert rope == {**official.pop("rope_parameters"), "rope_theta": 5_000_000.0}
    assert str(ours.pop("dtype")).removeprefix("torch.") == "bfloat16"
    official.pop("dtype")
    assert ours == official


def test_logits_equal_those_of_a_model_filled_by_hand(tmp_path):
    model = load_model(str(write_released(tmp_path, RELEASED_GLM4, num_shards=3)))
    weights = {k.removeprefix("transformer."): v for k, v in released_weights(RELEASED_GLM4).items()}
    names = {
        "embedding.word_embeddings.weight": "model.embed_tokens.weight",
        "encoder.final_layernorm.weight": "model.norm.weight",
        "output_layer.weight": "lm_head.weight",
    }
    state = {ours: weights.pop(released) for released, ours in names.items()}
    for name, tensor in weights.items():
        _, _, index, part = name.split(".", 3)
        layer = f"model.layers.{index}."
        if part.startswith("self_attention.query_key_value"):
            for letter, rows in (("q", slice(0, 64)), ("k", slice(64, 96)), ("v", slice(96, 128))):
                state[f"{layer}self_attn.{letter}_proj.{part.rsplit('.', 1)[1]}"] = tensor[rows]
            continue
        part = part.replace("self_attention.dense", "self_attn.o_proj")
        part = part.replace("dense_h_to_4h", "gate_up_proj").replace("dense_4h_to_h", "down_proj")
        state[layer + part] = tensor
    by_hand = GlmForCausalLM(
        GlmConfig(
            vocab_size=96,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            rms_norm_eps=1.5625e-07,
            attention_bias=True,
            pad_token_id=2,
            eos_token_id=[2, 7, 9],
            rope_parameters={"rope_type": "default", "rope_theta": 5e6, "partial_rotary_factor": 0.5},
        )
    ).eval()
    by_hand.load_state_dict(state, strict=True)
    ids = torch.randint(0, 96, (2, 150), generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(input_ids=ids).logits, by_hand(input_ids=ids).logits)


def test_generation_stops_at_any_of_the_eos_tokens(tmp_path):
    model = load_model(str(write_released(tmp_path, RELEASED_GLM4)))
    assert model.generation_config.eos_token_id == RELEASED_GLM4["eos_token_id"]
    inputs = batch([[5, 17, 33, 8]], "left")
    model.generation_config.eos_token_id = None
    free = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, 4:].tolist()
    for position in (2, 4):
        others = [token for token in range(96) if token not in free][:2]
        model.generation_config.eos_token_id = [others[0], free[position], others[1]]
        stopped = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, 4:].tolist()
        assert stopped == free[: free.index(free[position]) + 1]


# -- tokenizer: ids recorded with tiktoken 0.14 from the same small vocabulary


def test_ids_and_texts_equal_tiktoken(tokenizer):
    for text, ids in zip(RECORDED["texts"], RECORDED["ids"], strict=True):
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids, text
        assert tokenizer.decode(ids) == text


def test_control_tokens_follow_the_ranks_in_the_released_order(tokenizer):
    # 151329 in the released file; config.json and generation_config.json count on these ids
    released = {
        "<|endoftext|>": 151329,
        "[gMASK]": 151331,
        "<sop>": 151333,
        "<|user|>": 151336,
        "<|observation|>": 151338,
    }
    for token, index in released.items():
        assert tokenizer.convert_tokens_to_ids(token) == index - 151329 + NUM_RANKS
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == NUM_RANKS
    assert len(tokenizer) == 151343 - 151329 + NUM_RANKS


def test_prefix_tokens_padding_and_truncation(tokenizer):
    plain = tokenizer("你好，请问", add_special_tokens=False)["input_ids"]
    start = [NUM_RANKS + 2, NUM_RANKS + 4]
    assert tokenizer("你好，请问")["input_ids"] == start + plain
    padded = tokenizer(["你好，请问", "好"], padding=True)
    num_pads = padded["attention_mask"][1].count(0)
    assert num_pads > 0
    assert padded["input_ids"][1][: num_pads + 2] == [NUM_RANKS] * num_pads + start
    assert tokenizer("你好，请问", truncation=True, max_length=4)["input_ids"] == start + plain[:2]


def test_chat_template_and_what_looks_like_control_tokens(tokenizer):
    def ids(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    control = {role: tokenizer.convert_tokens_to_ids(f"<|{role}|>") for role in ("system", "user", "assistant")}
    messages = [
        {"role": "system", "content": "简约。"},
        {"role": "user", "content": "<|user|>[gMASK]<|endoftext|> 你好"},
        {"role": "assistant", "metadata": "note", "content": "好"},
        {"role": "user", "content": "谢谢"},
    ]
    expected = [NUM_RANKS + 2, NUM_RANKS + 4]
    for message in messages:
        expected += [control[message["role"]], *ids(f"{message.get('metadata', '')}\n{message['content']}")]
    expected.append(control["assistant"])
    encoded = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert encoded == expected
    with pytest.raises(Exception, match="GLM-4 knows the roles system, user, assistant, observation, not tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": ""}])


def test_rows_for_training_and_generation(tokenizer):
    rows = {"prompt": ["你好"], "response": ["谢谢"], "history": [[["天气", "舒适"]]]}
    (prompt,) = encode_for_generation(rows, tokenizer, EncodeOptions())["input_ids"]
    encoded = encode_for_training(rows, tokenizer, EncodeOptions())
    answer = [*tokenizer("\n谢谢", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    assert encoded["input_ids"] == [prompt + answer]
    assert encoded["labels"] == [[-100] * len(prompt) + answer]


def test_saved_tokenizer_is_read_by_auto_tokenizer(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for text in RECORDED["texts"][:20]:
        if "<|" not in text and "[gMASK]" not in text:
            assert again(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_released_directory_gives_this_tokenizer(tokenizer, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(RELEASED_GLM4))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ChatGLM4Tokenizer"}))
    (tmp_path / "tokenizer.model").write_bytes(VOCABULARY.read_bytes())
    with pytest.raises(ArgumentError, match="this is GLM-4; leave it out"):
        load_tokenizer(tmp_path, prompt_style="chatglm3")
    loaded = load_tokenizer(tmp_path)
    assert loaded.chat_template == tokenizer.chat_template
    assert loaded(RECORDED["texts"])["input_ids"] == tokenizer(RECORDED["texts"])["input_ids"]


def test_damaged_files_are_refused(tmp_path):
    content = VOCABULARY.read_bytes()
    file = tmp_path / "tokenizer.model"
    for damaged, message in (
        (content[:-6], ":900: .* is no base64 token with its rank"),
        (
            b"".join(content.splitlines(keepends=True)[:200]),
            "200 tokens with ranks from 0 to 199, 200 of them single bytes",
        ),
    ):
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=message):
            build_glm4(file, "x")


def test_kinds_of_files_are_told_apart(tmp_path):
    file = tmp_path / "tokenizer.model"
    file.write_bytes(sentencepiece_model())
    assert is_tiktoken(VOCABULARY)
    assert not is_tiktoken(file)

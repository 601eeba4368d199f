"""Options beside a trained adapter: they agree with its own settings, or are refused."""

import pytest

from softlaunch.arguments import parse_arguments
from softlaunch.errors import ArgumentError
from softlaunch.tuning import add_ia3, add_lora, add_p_tuning, add_prefix, add_prompt_tuning, export_adapter
from softlaunch.tuning.own_settings import check_own_settings
from tests.bases import random_base

RUN = "--model_name_or_path m --do_train --train_file t.json"
ADAPTERS = {
    "lora": lambda base: add_lora(base, r=4, alpha=16, target_modules="query_key_value", modules_to_save=["lm_head"]),
    "dora": lambda base: add_lora(base, dora=True, target_modules=r".*layers\.[12]\..*q_proj"),
    "ia3": add_ia3,
    "prefix": lambda base: add_prefix(base, num_virtual_tokens=5, dropout=0.0),
    "both": lambda base: add_prefix(add_lora(base, r=4), num_virtual_tokens=5),
    "prompt": lambda base: add_prompt_tuning(base, num_virtual_tokens=5),
    "p_tuning": lambda base: add_p_tuning(base, num_virtual_tokens=5, encoder="lstm", hidden_size=24),
}


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    directory = tmp_path_factory.mktemp("adapters")
    for name, add in ADAPTERS.items():
        add(random_base("glm")).save_pretrained(directory / name)
    prefix = add_prefix(random_base("glm"), num_virtual_tokens=5)
    for name in ("peft", "original"):
        export_adapter(prefix, directory / name, format=name)
    return directory


def check(adapters, name, words):
    argv = [*RUN.split(), "--output_dir", str(adapters / "out"), *words.split()]
    check_own_settings(parse_arguments(argv), adapters / name)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("lora", "--tuning lora --lora_r 4 --lora_alpha 16 --use_dora false --modules_to_save lm_head"),
        ("lora", "--lora_target_modules k_proj,q_proj,v_proj --lora_dropout 0"),
        ("lora", "--lora_target_modules query_key_value"),
        ("lora", "--lora_target_modules auto"),
        ("dora", r"--use_dora --lora_r 8 --lora_target_modules .*layers\.[12]\..*q_proj"),
        ("ia3", "--tuning ia3 --ia3_target_modules auto"),
        ("prefix", "--pre_seq_len 5 --prefix_init text --prefix_init_text 上衣 --prefix_dropout 0"),
        ("prefix", "--lora_dropout 0"),  # the default of a method that this is not
        ("both", "--tuning lora --lora_r 4 --pre_seq_len 5"),
        ("prompt", "--pre_seq_len 5 --prompt_init vocabulary"),
        ("p_tuning", "--pre_seq_len 5 --encoder_type lstm --encoder_hidden_size 24"),
        ("peft", "--pre_seq_len 5 --prefix_dropout 0.1"),
        ("original", "--pre_seq_len 5 --prefix_projection false"),
    ],
)
def test_options_that_agree(adapters, name, words):
    check(adapters, name, words)


@pytest.mark.parametrize(
    ("name", "words", "messages"),
    [
        ("lora", "--lora_r 16 --use_dora", ["lora_r is 16, the adapter's is 4", "use_dora is True"]),
        ("lora", "--lora_target_modules q_proj", ["lora_target_modules is", "the adapter's is"]),
        ("lora", "--modules_to_save embed_tokens", ["modules_to_save is", "lm_head"]),
        ("lora", "--pre_seq_len 32", ["pre_seq_len is 32, the adapter's is lora"]),
        ("dora", "--use_dora false", ["use_dora is False, the adapter's is True"]),
        ("ia3", "--tuning lora", ["tuning is lora, the adapter's is ia3"]),
        ("prefix", "--pre_seq_len 5 --lora_r 4", ["lora_r is 4, the adapter's is p_tuning_v2"]),
        ("prefix", "--prefix_dropout 0.1", ["prefix_dropout is 0.1, the adapter's is 0.0"]),
        ("both", "--lora_r 8", ["lora_r is 8, the adapter's is 4"]),
        ("prompt", "--pre_seq_len 6", ["pre_seq_len is 6, the adapter's is 5"]),
        ("p_tuning", "--lora_r 8", ["lora_r is 8, the adapter's is p_tuning"]),
        ("p_tuning", "--encoder_type mlp", ["encoder_type is mlp, the adapter's is LSTM"]),
        ("original", "--lora_r 8", ["the adapter's is p_tuning_v2"]),
    ],
)
def test_options_that_ask_for_something_else(adapters, name, words, messages):
    with pytest.raises(ArgumentError, match="settings of its own") as error:
        check(adapters, name, words)
    assert all(message in str(error.value) for message in messages)

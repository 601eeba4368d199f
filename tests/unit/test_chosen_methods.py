"""Which method a command line asks for, and what is said when it asks for two."""

import pytest

from softlaunch.arguments import parse_arguments
from softlaunch.arguments.methods import chosen_methods
from softlaunch.errors import ArgumentError
from softlaunch.tuning import earlier_model

RUN = "--model_name_or_path m --output_dir {} --do_train --train_file t.json"
LORA, PREFIX, BOTH = ("lora", "ia3"), ("p_tuning_v2",), ("p_tuning_v2", "lora")
PROMPT, WHOLE = ("prompt_tuning", "p_tuning"), ("full", "freeze")


def parse(tmp_path, words):
    return parse_arguments([*RUN.format(tmp_path).split(), *words.split()])


@pytest.mark.parametrize(
    ("allowed", "words", "methods"),
    [
        (LORA, "", ("lora",)),
        (LORA, "--lora_r 8 --use_dora", ("lora",)),
        (LORA, "--tuning ia3 --modules_to_save lm_head", ("ia3",)),
        (LORA, "--ia3_target_modules k_proj v_proj", ("ia3",)),
        (LORA, "--lora_r 8 --pre_seq_len 16", BOTH),
        (LORA, "--pre_seq_len 16", BOTH),
        (LORA, "--tuning ia3 --lora_r null", ("ia3",)),
        (PREFIX, "--pre_seq_len 16", ("p_tuning_v2",)),
        (PREFIX, "--pre_seq_len 16 --lora_r 8", BOTH),
        (PROMPT, "--pre_seq_len 16", ("prompt_tuning",)),
        (PROMPT, "--pre_seq_len 16 --encoder_type lstm", ("p_tuning",)),
        (WHOLE, "--freeze_trainable_layers 3", ("freeze",)),
        (WHOLE, "--save_format chatglm", ("full",)),
    ],
)
def test_method(allowed, words, methods, tmp_path):
    assert chosen_methods(parse(tmp_path, words), allowed) == methods


@pytest.mark.parametrize(
    ("allowed", "words", "message"),
    [
        (LORA, "--tuning ia3 --lora_r 8", "ia3, and lora by lora_r"),
        (LORA, "--tuning ia3 --pre_seq_len 8", "ia3, and p_tuning_v2 by pre_seq_len"),
        (PREFIX, "--pre_seq_len 8 --freeze_trainable_layers 1", "p_tuning_v2, and freeze by freeze_trainable_layers"),
        (PROMPT, "--pre_seq_len 8 --lora_r 8 --lora_alpha 16", "prompt_tuning, and lora by lora_alpha, lora_r"),
        (WHOLE, "--tuning full --freeze_trainable_layers 1", "full, and freeze"),
        (WHOLE, "--lora_r 8", "recipes/lora_chatglm.py"),
        (PREFIX, "--tuning full", "recipes/finetune_chatglm.py"),
        ((*WHOLE, "head"), "--tuning head --freeze_trainable_layers 9", "or set tuning to freeze$"),
        (WHOLE, "--tuning p_tuning", "recipes/prompt_tuning.py"),
    ],
)
def test_two_methods_at_once_and_the_wrong_recipe(allowed, words, message, tmp_path):
    with pytest.raises(ArgumentError, match=message.replace(".", r"\.")):
        chosen_methods(parse(tmp_path, words), allowed)


@pytest.mark.parametrize("words", ["--lora_r 0", "--freeze_trainable_layers 0", "--lora_dropout 1", "--tuning qlora"])
def test_values_out_of_range(words, tmp_path):
    with pytest.raises(ArgumentError, match="must be"):
        parse(tmp_path, words)


@pytest.mark.parametrize("name", ["adapter", "ptuning_checkpoint", "lora_checkpoint"])
def test_full_fine_tuning_takes_no_adapter(name, tmp_path):
    with pytest.raises(ArgumentError, match="this recipe trains and leaves whole models"):
        earlier_model(parse(tmp_path, f"--{name} somewhere"))


def test_full_fine_tuning_leaves_no_base_to_compare_with(tmp_path):
    with pytest.raises(ArgumentError, match="change the base itself"):
        earlier_model(parse(tmp_path, "--do_predict --test_file t.json --compare_with_base"))


def test_weights_of_an_earlier_run(tmp_path):
    words = "--no_do_train --do_predict --test_file t.json"
    assert earlier_model(parse(tmp_path, words)) == "m"
    (tmp_path / "model").mkdir()
    assert earlier_model(parse(tmp_path, words)) == str(tmp_path / "model")
    assert earlier_model(parse(tmp_path, "")) == "m"

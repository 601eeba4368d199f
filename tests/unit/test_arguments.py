"""Arguments: forms of giving them, strictness, messages, old names, checks between options."""

import dataclasses
import json
import logging
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Seq2SeqTrainingArguments
from transformers.integrations import integration_utils
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.training_args import OptimizerNames

from softlaunch.arguments import (
    Arguments,
    DataArguments,
    TrainingArguments,
    packages,
    parse_arguments,
    parse_to_look,
)
from softlaunch.arguments.checks import ANSWER_SCORES, CLASS_SCORES
from softlaunch.arguments.old_names import current_options, idle_names, old_names
from softlaunch.errors import ArgumentError

BASE = {"model_name_or_path": "models/x", "output_dir": "output/x", "do_train": True, "train_file": "train.json"}
FLAGS = ["--model_name_or_path", "models/x", "--output_dir", "output/x", "--do_train", "--train_file", "train.json"]
REPOSITORY = Path(__file__).parents[2]
CHECKPOINTING_FIELD = (
    "activation_checkpointing"
    if "activation_checkpointing" in {f.name for f in dataclasses.fields(Seq2SeqTrainingArguments)}
    else "gradient_checkpointing"
)


def parse(tmp_path: Path, values: dict, *flags: str) -> Arguments:
    path = tmp_path / "run.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    return parse_arguments([str(path), *flags])


def parse_text(tmp_path: Path, text: str | bytes) -> Arguments:
    path = tmp_path / "run.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return parse_arguments([str(path)])


def error_of(*argv: str) -> str:
    with pytest.raises(ArgumentError) as caught:
        parse_arguments([*argv])
    return str(caught.value)


def file_error(tmp_path: Path, values: dict, *flags: str) -> str:
    with pytest.raises(ArgumentError) as caught:
        parse(tmp_path, values, *flags)
    return str(caught.value)


def test_flags_win_over_file(tmp_path):
    arguments = parse(tmp_path, BASE | {"learning_rate": 1e-2, "max_steps": 5}, "--learning_rate", "1e-3")
    assert arguments.training.learning_rate == 1e-3
    assert arguments.training.max_steps == 5
    assert arguments.sources["learning_rate"] == "--learning_rate"
    assert arguments.sources["max_steps"].endswith("run.json")
    assert "weight_decay" not in arguments.sources


def test_file_alone_and_flags_alone_agree(tmp_path):
    from_file, from_flags = parse(tmp_path, BASE), parse_arguments(FLAGS)
    assert from_file.model == from_flags.model
    assert from_file.data == from_flags.data
    assert from_file.training.to_dict() == from_flags.training.to_dict()


@pytest.mark.parametrize(
    ("flags", "name", "expected"),
    [
        ("--max_steps=7", "max_steps", 7),
        ("--max-steps 7", "max_steps", 7),
        ("--max_steps -1", "max_steps", -1),
        ("--bf16", "bf16", True),
        ("--bf16 true", "bf16", True),
        ("--bf16=False", "bf16", False),
        ("--no_dataloader_in_order", "dataloader_in_order", False),
        ("--logging_steps 1", "logging_steps", 1),
        ("--warmup_steps 0.1", "warmup_steps", 0.1),
        ("--report_to tensorboard flyte", "report_to", ["tensorboard", "flyte"]),
        ("--report_to none", "report_to", []),
        ("--label_names labels", "label_names", ["labels"]),
        ("--save_total_limit null", "save_total_limit", None),
        ("""--lr_scheduler_kwargs '{"num_cycles": 2}'""", "lr_scheduler_kwargs", {"num_cycles": 2}),
        ("--run_name 晚", "run_name", "晚"),
        ("--fsdp_config settings.json", "fsdp_config", "settings.json"),
        ("--lr_scheduler_type cosine", "lr_scheduler_type", "cosine"),
    ],
)
def test_flag_forms(flags, name, expected):
    assert getattr(parse_arguments([*FLAGS, *shlex.split(flags)]).training, name) == expected


def test_flag_given_twice_warns_and_last_wins():
    arguments = parse_arguments([*FLAGS, "--max_steps", "1", "--max_steps", "2"])
    assert arguments.training.max_steps == 2
    assert any("--max_steps is given 2 times" in warning for warning in arguments.warnings)


def test_switching_off_what_was_switched_on():
    arguments = parse_arguments([*FLAGS, "--bf16", "--no_bf16"])
    assert arguments.training.bf16 is False
    assert arguments.warnings == ("--bf16 and --bf16 false are both given: the last one counts",)


def test_key_given_twice_warns_and_last_wins(tmp_path):
    arguments = parse_text(
        tmp_path,
        '{"model_name_or_path": "m", "do_train": true, "train_file": "t", "output_dir": "first", "output_dir": "last"}',
    )
    assert arguments.training.output_dir == "last"
    (warning,) = arguments.warnings
    assert all(part in warning for part in ("run.json: output_dir", '"first"', '"last"'))


def test_warnings_are_logged_on_the_first_process_alone(caplog, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    parse_arguments([*FLAGS, "--overwrite_output_dir"])
    assert not [r for r in caplog.records if r.name.startswith("softlaunch")]
    monkeypatch.setenv("RANK", "0")
    with caplog.at_level(logging.WARNING):
        parse_arguments([*FLAGS, "--overwrite_output_dir"])
    assert "write --restart true" in caplog.text


def test_groups_are_frozen_and_target_length_is_inherited():
    data = parse_arguments([*FLAGS, "--max_target_length", "33"]).data
    assert data.val_max_target_length == 33
    assert DataArguments(max_target_length=5, val_max_target_length=6).val_max_target_length == 6
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.max_target_length = 1  # type: ignore[misc]


def test_original_argument_file(tmp_path):
    arguments = parse_text(
        tmp_path,
        """{
        "do_train": true, "train_file": "AdvertiseGen/train.json", "validation_file": "AdvertiseGen/dev.json",
        "preprocessing_num_workers": 10, "prompt_column": "content", "response_column": "summary",
        "overwrite_cache": true, "model_name_or_path": "model/chatglm2-6b", "output_dir": "output/lora_version",
        "overwrite_output_dir": true, "max_source_length": 64, "max_target_length": 128,
        "per_device_train_batch_size": 1, "per_device_eval_batch_size": 1, "gradient_accumulation_steps": 16,
        "predict_with_generate": true, "max_steps": 3000, "logging_steps": 10, "save_steps": 100,
        "learning_rate": 2e-5, "lora_r": 32, "model_parallel_mode": true, "output_dir": "output"
        }""",
    )
    assert arguments.training.output_dir == "output"
    assert arguments.training.restart
    assert arguments.tuning.lora_r == 32
    assert arguments.model.model_parallel_mode
    assert arguments.training.learning_rate == 2e-5
    assert len(arguments.warnings) == 2


def test_original_training_flags():
    arguments = parse_arguments(
        shlex.split(
            "--do_train --train_file AdvertiseGen/train.json --validation_file AdvertiseGen/dev.json "
            "--preprocessing_num_workers 10 --prompt_column content --response_column summary --overwrite_cache "
            "--model_name_or_path model/chatglm2-6b --output_dir output/adgen --overwrite_output_dir "
            "--max_source_length 64 --max_target_length 128 --per_device_train_batch_size 1 "
            "--per_device_eval_batch_size 1 --gradient_accumulation_steps 16 --predict_with_generate --max_steps 3000 "
            "--logging_steps 10 --save_steps 1000 --learning_rate 2e-2 --pre_seq_len 128 --quantization_bit 4"
        )
    )
    assert arguments.tuning.pre_seq_len == 128
    assert arguments.model.quantization_bit == 4
    assert arguments.data.overwrite_cache
    assert arguments.data.prompt_column == "content"
    assert arguments.training.predict_with_generate
    assert arguments.training.gradient_accumulation_steps == 16
    assert not arguments.training.do_predict


def test_original_evaluation_flags():
    arguments = parse_arguments(
        shlex.split(
            "--do_predict --validation_file dev.json --test_file dev.json --overwrite_cache --prompt_column content "
            "--response_column summary --model_name_or_path model/chatglm2-6b --ptuning_checkpoint out/checkpoint-3000 "
            "--output_dir out --overwrite_output_dir --max_source_length 64 --max_target_length 64 "
            "--per_device_eval_batch_size 1 --predict_with_generate --pre_seq_len 128 --quantization_bit 4"
        )
    )
    assert arguments.tuning.adapter == "out/checkpoint-3000"
    assert arguments.data.val_max_target_length == 64
    assert any("--ptuning_checkpoint is called adapter today" in warning for warning in arguments.warnings)


@pytest.mark.parametrize(
    ("old", "value", "group", "name", "expected"),
    [
        ("lora_checkpoint", "dir", "tuning", "adapter", "dir"),
        ("use_auth_token", True, "model", "token", True),
        ("overwrite_output_dir", True, "training", "restart", True),
        ("evaluation_strategy", "steps", "training", "eval_strategy", "steps"),
        ("no_cuda", True, "training", "use_cpu", True),
        ("per_gpu_train_batch_size", 3, "training", "per_device_train_batch_size", 3),
        ("adafactor", True, "training", "optim", "adafactor"),
        ("include_tokens_per_second", True, "training", "include_num_input_tokens_seen", "all"),
        ("warmup_ratio", 0.1, "training", "warmup_steps", 0.1),
        ("generation_num_beams", 2, "data", "num_beams", 2),
    ],
)
def test_old_names_do_what_they_did(tmp_path, old, value, group, name, expected):
    arguments = parse(tmp_path, BASE | {"validation_file": "dev.json", old: value})
    assert getattr(getattr(arguments, group), name) == expected
    (warning,) = arguments.warnings
    assert old in warning
    assert name in warning


def test_every_old_name_leads_to_a_current_option():
    assert set(old_names().values()) <= set(current_options())
    assert not set(old_names()) & set(current_options())
    assert not set(idle_names()) & set(current_options())


@pytest.mark.parametrize("name", ["gradient_checkpointing", "activation_checkpointing"])
def test_both_names_of_checkpointing_work_and_it_is_non_reentrant(tmp_path, name, recwarn):
    training = parse(tmp_path, BASE | {name: True}).training
    assert getattr(training, CHECKPOINTING_FIELD) is True
    assert training.gradient_checkpointing is True
    assert getattr(training, f"{CHECKPOINTING_FIELD}_kwargs") == {"use_reentrant": False}
    assert not [w for w in recwarn if "deprecated" in str(w.message)]


def test_checkpointing_keeps_what_was_asked_for():
    flags = ["--gradient_checkpointing", "--gradient_checkpointing_kwargs", '{"preserve_rng_state": false}']
    kwargs = parse_arguments([*FLAGS, *flags]).training.gradient_checkpointing_kwargs
    assert kwargs == {"use_reentrant": False, "preserve_rng_state": False}
    kwargs = parse_arguments([*FLAGS, flags[1], '{"use_reentrant": true}']).training.gradient_checkpointing_kwargs
    assert kwargs == {"use_reentrant": True}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"pad_to_max_length": True}, "padded to their longest row"),
        ({"ignore_pad_token_for_loss": False}, "padding never counts"),
        ({"save_safetensors": False}, "safetensors"),
        ({"trust_remote_code": True}, "never run"),
        ({"remove_unused_columns": True}, "row ids"),
        ({"generation_max_length": 9}, "val_max_target_length"),
        ({"top_p": 0.5}, "without do_sample"),
        ({"prefix_init_text": "写广告"}, "with prefix_init random"),
    ],
)
def test_options_without_effect_say_so(tmp_path, values, says):
    (warning,) = parse(tmp_path, BASE | values).warnings
    assert "no effect" in warning
    assert says in warning


def test_options_that_ask_for_what_happens_anyway_are_quiet(tmp_path):
    quiet = {"pad_to_max_length": False, "ignore_pad_token_for_loss": True, "trust_remote_code": None}
    assert parse(tmp_path, BASE | quiet, "--ignore_pad_token_for_loss", "--no_pad_to_max_length").warnings == ()
    assert parse(tmp_path, BASE | {"top_p": 0.5, "do_sample": True}).warnings == ()


def test_options_that_a_recipe_does_not_read_are_named(tmp_path):
    path = tmp_path / "run.json"
    path.write_text(json.dumps(BASE | {"lora_r": 8}))
    (warning,) = parse_arguments([str(path)], unused=["lora_r", "lora_alpha"]).warnings
    assert warning.endswith("run.json: lora_r = 8 has no effect in this recipe")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"max_steps": "notint"}, ['max_steps = "notint"', "must be a whole number"]),
        ({"max_steps": "10"}, ["must be a whole number", "without quotes"]),
        ({"max_steps": 10.0}, ["max_steps = 10.0", "must be a whole number"]),
        ({"max_steps": True}, ["must be a whole number"]),
        ({"learning_rate": "2e-5"}, ["must be a number", "without quotes"]),
        ({"learning_rate": -1}, ["learning_rate = -1", "at least 0"]),
        ({"bf16": "true"}, ["must be true or false", "without quotes"]),
        ({"bf16": 1}, ["bf16 = 1", "must be true or false"]),
        ({"max_source_length": None}, ["max_source_length = null", "must be a whole number"]),
        ({"train_file": ["a"]}, ["must be text"]),
        ({"quantization_bit": 3}, ["quantization_bit = 3", "one of 4, 8"]),
        ({"dtype": "bfloat"}, ["one of auto, float32, bfloat16, float16", "did you mean bfloat16?"]),
        ({"lr_scheduler_type": "cosin"}, ["did you mean cosine?"]),
        ({"log_level": "loud"}, ["one of", "debug"]),
        ({"prefix_dropout": 1}, ["at least 0 and below 1"]),
        ({"report_to": [1]}, ["must be text or a list of texts"]),
        ({"label_names": "labels"}, ["must be a list of texts"]),
        ({"lr_scheduler_kwargs": "x"}, ["must be a JSON object"]),
        ({"warmup_ratio": 1.0}, ["below 1"]),
        ({"num_train_epochs": float("nan")}, ["num_train_epochs = NaN", "must be a number above 0"]),
        ({"learning_rte": 1}, ["learning_rte", "no such option", "did you mean learning_rate?"]),
        ({"Learning-Rate": 1}, ["did you mean learning_rate?"]),
        ({"evaluation_stategy": "no"}, ["did you mean eval_strategy?"]),
        ({"qwxyz": 1}, ["no such option", "--help lists all"]),
        ({"ptuning_checkpoint": "a", "adapter": "b"}, ["same option", "give adapter alone"]),
    ],
)
def test_wrong_values_in_a_file(tmp_path, values, says):
    message = file_error(tmp_path, BASE | values)
    assert message.startswith(f"{tmp_path}/run.json: ")
    assert "\n" not in message
    for part in says:
        assert part in message


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--max_steps x", "--max_steps x: must be a whole number"),
        ("--max_steps 1e3", "--max_steps 1e3: must be a whole number"),
        ("--max_steps", "--max_steps: needs a value: a whole number"),
        ("--max_steps 1 2", "--max_steps 1 2: takes one value, not 2"),
        ("--bf16 maybe", "--bf16 maybe: must be true or false"),
        ("--learning_rate inf", "--learning_rate inf: must be a number"),
        ("--learning_rate fast", "--learning_rate fast: must be a number at least 0"),
        ("--lr_scheduler_kwargs {x", "is no valid JSON object"),
        ("--learning-rte 1", "--learning_rte: there is no such option; did you mean --learning_rate?"),
        ("--no_max_steps", "--no_max_steps: there is no such option; did you mean --max_steps?"),
        ("--optim adamw_hf", "did you mean adamw_torch?"),
    ],
)
def test_wrong_flags(flags, says):
    assert says in error_of(*FLAGS, *shlex.split(flags))


def test_all_problems_come_at_once(tmp_path):
    message = file_error(
        tmp_path,
        {"do_train": True, "learning_rte": 1, "max_steps": "notint", "fp16": True, "bf16": True},
        "--quantization_bit",
        "3",
    )
    first, *problems = message.splitlines()
    assert first == "7 problems in the arguments:"
    for part in (
        "learning_rte: there is no such option",
        'max_steps = "notint"',
        "--quantization_bit 3",
        "model_name_or_path is missing",
        "output_dir is missing",
        "do_train needs train_file",
        "fp16 and bf16 exclude each other",
    ):
        assert sum(part in problem for problem in problems) == 1
    assert len(problems) == 7


def test_a_refused_value_is_reported_once(tmp_path):
    message = file_error(tmp_path, BASE | {"train_file": 5, "output_dir": 6})
    assert message.startswith("2 problems")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{'a': 1}", ":1:2: the argument file is no valid JSON"),
        ('{"prompt": "a"}\n{"prompt": "b"}\n', "is this a file of rows?"),
        ("[1]", "holds one JSON object"),
        (b"\xc4\xe3", "must be UTF-8"),
    ],
)
def test_unreadable_argument_files(tmp_path, text, says):
    with pytest.raises(ArgumentError) as caught:
        parse_text(tmp_path, text)
    assert says in str(caught.value)
    assert "run.json" in str(caught.value)


def test_byte_order_mark_is_accepted(tmp_path):
    assert parse_text(tmp_path, b"\xef\xbb\xbf" + json.dumps(BASE).encode()).training.do_train


def test_missing_argument_file_and_stray_words(tmp_path):
    assert "no such argument file" in error_of("nowhere.json")
    assert "'-x' belongs to no option" in error_of("-x")
    assert "cannot be read" in error_of(str(tmp_path))


def test_secrets_do_not_reach_messages(tmp_path, caplog):
    text = '{"hub_token": "s3cret-one", "hub_token": "s3cret-two", "use_auth_token": "s3cret-three", "token": 5}'
    with pytest.raises(ArgumentError) as caught:
        parse_text(tmp_path, text)
    assert "hub_token is given more than once" in caplog.text
    assert "s3cret" not in caplog.text + str(caught.value)
    assert "s3cret" not in error_of("--hub_token", "s3cret", "--token", "s3cret", "again")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"do_train": False}, "nothing to do"),
        ({"train_file": ""}, "do_train needs train_file"),
        ({"do_eval": True}, "do_eval needs validation_file"),
        ({"do_predict": True}, "do_predict needs test_file"),
        ({"eval_strategy": "steps"}, "eval_strategy needs validation_file"),
        ({"load_best_model_at_end": True}, "needs evaluation while training"),
        ({"metric_for_best_model": "rouge-l"}, "set predict_with_generate"),
        ({"metric_for_best_model": "eval_bleu-4"}, "set predict_with_generate"),
        ({"metric_for_best_model": "rouge_l", "predict_with_generate": True}, 'Did you mean "rouge-l"?'),
        ({"metric_for_best_model": "f1_macro"}, "no score of this recipe"),
        ({"report_to": "tensorbord"}, "no tracker; known are none, all, azure_ml, "),
        ({"report_to": ["tensorboard", "wandbb"]}, 'Did you mean "wandb"?'),
        ({"prefix_init": "text"}, "needs prefix_init_text"),
        ({"restart": True, "resume_from_checkpoint": "x"}, "give one of them"),
        ({"dataloader_prefetch_factor": 2}, "dataloader_num_workers"),  # a check of transformers' own
        ({"accelerator_config": {"nonsense": 1}}, "nonsense"),
    ],
)
def test_contradictions(tmp_path, values, says):
    assert says in file_error(tmp_path, BASE | values)


def test_scores_are_those_of_the_recipe():
    from softlaunch.evaluation.label_metrics import label_scores
    from softlaunch.evaluation.scores import COUNT_NAMES
    from softlaunch.evaluation.text_metrics import SCORE_NAMES

    assert set(CLASS_SCORES) == set(label_scores(np.eye(2), np.arange(2)))
    assert (*SCORE_NAMES, *COUNT_NAMES) == ANSWER_SCORES
    with pytest.raises(ArgumentError, match=r'metric_for_best_model macro_f1 .*Did you mean "f1_macro"\?'):
        parse_arguments([*FLAGS, "--metric_for_best_model", "macro_f1"], classifies=True)
    for name in ("eval_recall_weighted", "loss"):
        parse_arguments([*FLAGS, "--metric_for_best_model", name], classifies=True)


@pytest.mark.parametrize(
    ("flags", "package"),
    [
        ("--report_to wandb", "wandb"),
        ("--optim galore_adamw", "galore-torch"),
        ("--optim paged_lion_8bit", "bitsandbytes"),
        ("--optim stable_adamw", "torch-optimi"),
    ],
)
def test_packages_that_trackers_and_optimizers_need(monkeypatch, flags, package):
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    monkeypatch.setattr(integration_utils, "get_available_reporting_integrations", lambda: ["tensorboard"])
    assert f"needs the package {package}, which is not installed (given: {flags})" in error_of(*FLAGS, *flags.split())
    parse_arguments([*FLAGS, "--report_to", "tensorboard", "--optim", "adafactor"])
    parse_to_look([*FLAGS, *flags.split()])  # who only looks at a run needs no packages


def test_every_optimizer_with_a_package_is_known():
    """transformers raises ImportError for these where the package is missing; no other name may be new."""
    free = ("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop")
    names = [name.value for name in OptimizerNames]
    starts = tuple(packages._OPTIMIZERS)
    assert [name for name in names if not name.startswith(starts)] == [name for name in names if name in free]


def test_missing_deepspeed_file(tmp_path):
    try:
        assert "nowhere.json" in file_error(tmp_path, BASE | {"deepspeed": "nowhere.json"})
    finally:
        unset_hf_deepspeed_config()  # transformers sets it before it reads the file, and loading a model looks at it


def test_a_score_is_better_when_greater(tmp_path):
    values = {
        "validation_file": "dev.json",
        "predict_with_generate": True,
        "eval_strategy": "steps",
        "load_best_model_at_end": True,
    }
    training = parse(tmp_path, BASE | values | {"metric_for_best_model": "rouge-l"}).training
    assert training.greater_is_better is True
    assert parse(tmp_path, BASE | values).training.greater_is_better is False


@pytest.mark.parametrize(
    ("methods", "flags", "expected"),
    [
        (("p_tuning_v2",), "", 1e-2),
        (("p_tuning_v2",), "--prefix_init text --prefix_init_text 你好", 5e-3),
        (("p_tuning_v2",), "--prefix_projection", 1e-3),
        (("lora", "ia3"), "", 2e-4),
        (("ia3", "lora"), "--ia3_target_modules q_proj", 3e-3),
        (("full", "freeze"), "", 2e-5),
        ((), "", 5e-5),
    ],
)
def test_a_learning_rate_that_is_not_given_is_the_methods_own(methods, flags, expected):
    arguments = parse_arguments([*FLAGS, *shlex.split(flags)], methods=methods)
    assert arguments.training.learning_rate == expected
    assert arguments.sources.get("learning_rate") == (f"default of {methods[0]}" if methods else None)
    assert arguments.warnings == ()
    given = parse_arguments([*FLAGS, "--learning_rate", "3e-3"], methods=methods)
    assert (given.training.learning_rate, given.sources["learning_rate"]) == (3e-3, "--learning_rate")


@pytest.mark.parametrize(
    ("method", "learning_rate", "warns"),
    [
        ("p_tuning_v2", "2e-2", False),  # the original scripts
        ("p_tuning_v2", "1e-3", False),
        ("p_tuning_v2", "5e-5", True),  # transformers' default
        ("p_tuning_v2", "1", True),
        ("lora", "2e-5", False),  # the argument file of the original's LoRA variant
        ("lora", "2e-2", True),
        ("ia3", "3e-5", True),
        ("full", "2e-2", True),
        ("freeze", "1e-4", False),
    ],
)
def test_a_learning_rate_far_from_what_works_is_a_warning(method, learning_rate, warns):
    warnings = parse_arguments([*FLAGS, "--learning_rate", learning_rate], methods=[method]).warnings
    assert len(warnings) == warns
    assert all(f"far from what works for {method}" in w and "--learning_rate" in w for w in warnings)


@pytest.mark.parametrize(
    ("method", "default", "far"),
    [("lora", 1e-3, 1), ("full", 3e-5, 1e-2), ("head", 3e-3, 5e-5), ("p_tuning_v2", 5e-3, 50), ("freeze", 5e-5, 1e-6)],
)
def test_classifiers_have_learning_rates_of_their_own(tmp_path, method, default, far):
    asked = [*FLAGS, "--tuning", method]
    options = {"methods": ["lora", "full", "head", "p_tuning_v2", "freeze"], "classifies": True}
    assert parse_arguments(asked, **options).training.learning_rate == default
    assert "far from what works for" in parse_arguments([*asked, f"--learning_rate={far}"], **options).warnings[0]
    (tmp_path / "model").mkdir()  # of a classifier that goes on, the method is the one that it was trained with
    (tmp_path / "model" / "config.json").write_text(json.dumps({"softlaunch": {"method": method}}))
    assert parse_arguments([*FLAGS, "--adapter", str(tmp_path)], **options).training.learning_rate == default


def test_a_prefix_with_lora_takes_the_learning_rate_of_the_more_delicate(tmp_path):
    arguments = parse_arguments([*FLAGS, "--pre_seq_len", "4", "--lora_r", "4"], methods=["p_tuning_v2"])
    assert arguments.training.learning_rate == 2e-4
    assert arguments.sources["learning_rate"] == "default of p_tuning_v2 + lora"


def test_a_run_that_does_not_train_has_no_say_about_learning_rates():
    flags = [flag for flag in FLAGS if flag != "--do_train"]
    predicts = [*flags, "--do_predict", "--test_file", "test.json", "--learning_rate", "5"]
    assert parse_arguments(predicts, methods=["p_tuning_v2"]).warnings == ()
    assert "learning_rate" not in parse_arguments(predicts[:-2], methods=["p_tuning_v2"]).sources


def test_every_field_of_transformers_is_an_option():
    inherited = {f.name for f in dataclasses.fields(Seq2SeqTrainingArguments) if f.init}
    accepted = {*current_options(), *old_names(), *idle_names()}
    assert inherited <= accepted


def test_every_option_is_documented():
    assert [name for name, option in current_options().items() if not option.help] == []


def test_defaults_are_transformers_but_for_those_named():
    ours = {f.name: f.default for f in dataclasses.fields(TrainingArguments)}
    theirs = {f.name: f.default for f in dataclasses.fields(Seq2SeqTrainingArguments)}
    assert {name for name in theirs if ours[name] != theirs[name]} == {
        "ddp_find_unused_parameters",
        "logging_steps",
        "remove_unused_columns",
    }
    assert (ours["report_to"], ours["predict_with_generate"]) == ("none", False)
    assert ours["average_tokens_across_devices"] is True


@pytest.mark.skipif(torch.accelerator.is_available(), reason="needs a machine without an accelerator")
def test_cpu_needs_no_switch():
    training = parse_arguments([*FLAGS, "--bf16"]).training
    assert training.use_cpu
    assert training.device.type == "cpu"
    assert "fp16 needs a GPU" in error_of(*FLAGS, "--fp16")


def test_logging_dir_reaches_tensorboard(monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "before")
    TrainingArguments(output_dir="x", logging_dir="boards")
    from transformers.integrations import TensorBoardCallback

    assert TensorBoardCallback().logging_dir == "boards"


def test_shipped_argument_files_parse():
    paths = sorted((REPOSITORY / "recipes" / "args").glob("*.json"))
    assert {"adgen_ptuning.json", "multi_turn.json"} <= {path.name for path in paths}
    for path in paths:
        assert parse_arguments([str(path)], classifies=path.name.startswith("classify_")).warnings == (), path


def test_help_lists_every_name(capsys):
    with pytest.raises(SystemExit) as caught:
        parse_arguments(["--help"], description="Tunes a prefix.", classifies=True)
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "Tunes a prefix." in text
    for name in (*current_options(), *old_names(), *idle_names()):
        assert f"\n  --{name}" in text
    assert "(one of 4, 8; default: unset)" in " ".join(text.split())


def test_help_leaves_out_what_the_recipe_does_not_read(capsys, monkeypatch):
    monkeypatch.setenv("LANG", "zh_CN.UTF-8")  # of the help only the names of types are translated, so it stays English
    with pytest.raises(SystemExit):
        parse_arguments(["--help"], unused=["prompt_column"], defaults={"max_source_length": 77})
    text = " ".join(capsys.readouterr().out.split())
    assert "--prompt_column " not in text
    assert "--label_column" not in text
    assert "(a whole number at least 1; default: 77)" in text

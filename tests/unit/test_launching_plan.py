"""The plan's arithmetic, against models, against what autograd really keeps, and against transformers."""

import argparse
import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.trainer import Trainer

from softlaunch.arguments import names, old_names, options
from softlaunch.arguments.options import all_options
from softlaunch.commands import plan as plan_command
from softlaunch.errors import ArgumentError, CheckpointError, LaunchError
from softlaunch.launching.activations import Batch, Precision, activation_bytes
from softlaunch.launching.memory import GIB, training_memory
from softlaunch.launching.plan import make_plan
from softlaunch.launching.settings import OLD_NAMES, RunSettings, read_settings, settings_of
from softlaunch.launching.shape import read_shape
from softlaunch.launching.strategy import Machines, Strategy, read_strategy
from softlaunch.launching.trainable import lora_targets, trainable_parameters
from softlaunch.launching.workload import count_rows, plan_workload, sent_bytes
from softlaunch.tuning import add_ia3, add_prefix
from tests.bases import CONFIGS, RELEASED_GLM4, random_base, write_released

CHATGLM2_6B = {
    "model_type": "chatglm",
    "num_layers": 28,
    "padded_vocab_size": 65024,
    "hidden_size": 4096,
    "ffn_hidden_size": 13696,
    "kv_channels": 128,
    "num_attention_heads": 32,
    "seq_length": 32768,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "add_qkv_bias": True,
}
ONE_GPU = Machines(gpu_memory_gib=80)
ALONE = Strategy("single_gpu")
DEMO_BASE = Path(__file__).parents[2] / "recipes" / "demo" / "base"
EIGHT = Machines(1, 8)


@pytest.fixture
def chatglm2(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CHATGLM2_6B))
    return read_shape(tmp_path)


def run(**options):
    return RunSettings(**({"do_train": True, "per_device_train_batch_size": 1} | options))


def shape_of(config, directory):
    config.save_pretrained(directory)
    return read_shape(directory)


# Parameters


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("tied", [False, True])
def test_parameters_are_those_of_the_model(family, tied, tmp_path):
    config = CONFIGS[family]()
    config.tie_word_embeddings = tied
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        model.tie_weights()
    assert shape_of(config, tmp_path).parameters == model.num_parameters()


@pytest.mark.parametrize("bias", [False, True])
def test_parameters_of_llama_with_biases_and_of_mistral(bias, tmp_path):
    llama = {"attention_bias": bias, "mlp_bias": bias}
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    for name, more in (("llama", llama), ("mistral", {"num_key_value_heads": 2})):
        config = AutoConfig.for_model(name, **shape, **more, vocab_size=50)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        assert shape_of(config, tmp_path / name).parameters == model.num_parameters()


def test_released_checkpoints(tmp_path, chatglm2):
    assert chatglm2.parameters == 6_243_584_000
    shape = read_shape(write_released(tmp_path / "glm4", RELEASED_GLM4))
    assert shape.parameters == random_base("glm").num_parameters()


def test_what_is_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        read_shape(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(CheckpointError, match="'mamba' is none whose sizes are known"):
        read_shape(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(CheckpointError, match="hidden_size"):
        read_shape(tmp_path)
    for wrong in ({"num_attention_heads": 0}, {"hidden_size": "4096"}):
        (tmp_path / "config.json").write_text(json.dumps(CHATGLM2_6B | wrong))
        with pytest.raises(CheckpointError, match="a whole number of at least 1"):
            read_shape(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="expected a JSON object"):
        read_shape(tmp_path)


# What is trained


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("projection", [False, True])
def test_numbers_of_a_prefix(family, projection, tmp_path):
    model = add_prefix(random_base(family), num_virtual_tokens=5, projection=projection)
    settings = run(pre_seq_len=5, prefix_projection=projection)
    counted = trainable_parameters(shape_of(CONFIGS[family](), tmp_path), settings)
    assert counted == model.get_nb_trainable_parameters()[0]


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("targets", ["auto", "all-linear", ["o_proj", "down_proj"], "query_key_value"])
def test_numbers_of_lora(family, targets, tmp_path):
    shape, settings = shape_of(CONFIGS[family](), tmp_path), run(lora_r=4, lora_target_modules=targets)
    names = "all-linear" if targets == "all-linear" else lora_targets(shape, settings)
    model = get_peft_model(random_base(family), LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=names))
    assert trainable_parameters(shape, settings) == model.get_nb_trainable_parameters()[0]


def test_lora_targets_are_those_that_training_takes(tmp_path):
    from softlaunch.tuning.targets import find_targets

    for family in CONFIGS:
        shape, base = shape_of(CONFIGS[family](), tmp_path / family), random_base(family)
        assert set(lora_targets(shape, run(lora_r=4))) == set(find_targets(base, "auto", "lora"))


def test_lora_target_that_there_is_not(chatglm2):
    with pytest.raises(ArgumentError, match=r"no layer c_attn.*q_proj, k_proj"):
        trainable_parameters(chatglm2, run(lora_r=8, lora_target_modules="c_attn"))


def test_prefix_and_lora_together(chatglm2):
    both = trainable_parameters(chatglm2, run(pre_seq_len=128, lora_r=8))
    assert both == 1_835_008 + trainable_parameters(chatglm2, run(lora_r=8))


# Encoders

ENCODER = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 96,
    "max_position_embeddings": 48,
}
METHODS_OF_CLASSIFIERS = {
    "lora": {"lora_r": 4},
    "lora with dropout": {"lora_r": 4, "lora_dropout": 0.1},
    "lora, all layers": {"lora_r": 4, "lora_target_modules": ["query", "key", "value", "dense"]},
    "full": {"tuning": "full"},
    "head": {"tuning": "head"},
    "p_tuning_v2": {"pre_seq_len": 6},
    "prompt_tuning": {"tuning": "prompt_tuning", "pre_seq_len": 6},
    "p_tuning": {"tuning": "p_tuning", "pre_seq_len": 6, "encoder_hidden_size": 32},
    "p_tuning, lstm": {"tuning": "p_tuning", "pre_seq_len": 6, "encoder_type": "lstm"},
    "ia3": {"tuning": "ia3"},
    "freeze": {"tuning": "freeze"},
}


def encoder_and_shape(kind, directory, num_labels=5):
    config = AutoConfig.for_model(kind, **ENCODER, num_labels=num_labels)
    model = AutoModelForSequenceClassification.from_config(config)
    model.base_model.save_pretrained(directory)
    return model, read_shape(directory, num_labels)


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta"])
def test_parameters_of_encoders(kind, tmp_path):
    model, shape = encoder_and_shape(kind, tmp_path)
    assert shape.parameters == model.num_parameters()
    assert shape.head_parameters == sum(p.numel() for p in model.classifier.parameters())


def test_a_pooler_that_is_not_there_is_trained(tmp_path):
    from transformers import BertConfig, BertForMaskedLM

    BertForMaskedLM(BertConfig(**ENCODER)).save_pretrained(tmp_path)
    assert read_shape(tmp_path, 5).head_parameters == 64 * 64 + 64 + 5 * 65


@pytest.mark.parametrize(
    ("options", "trained"),
    [
        ({"tuning": "full"}, 7_074_058),
        ({"lora_r": 8}, 84_746),
        ({"pre_seq_len": 16}, 84_746),
        ({"freeze_trainable_layers": 1}, 858_122),
        ({"tuning": "ia3"}, 71_946),
        ({"tuning": "prompt_tuning", "pre_seq_len": 16}, 72_458),
        ({"tuning": "p_tuning", "pre_seq_len": 16}, 269_834),
        ({"tuning": "head"}, 68_362),
    ],
)
def test_documented_runs_of_classifiers(options, trained, tmp_path):
    """The numbers that the runs of docs/methods.md said they train, of an encoder without a pooler."""
    config = {"model_type": "bert", "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 2}
    config |= {"num_attention_heads": 4, "vocab_size": 21_128, "max_position_embeddings": 64, "type_vocab_size": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"bert.embeddings.LayerNorm.weight": torch.ones(1)}, tmp_path / "model.safetensors")
    assert trainable_parameters(read_shape(tmp_path, 10), run(**options, classifies=True)) == trained


@pytest.mark.parametrize("method", [name for name in METHODS_OF_CLASSIFIERS if name != "lora, all layers"])
def test_numbers_that_a_classifier_trains(method, tmp_path):
    from softlaunch.arguments import TuningArguments
    from softlaunch.tuning.classifier import add_method

    model, shape = encoder_and_shape("bert", tmp_path)
    options = METHODS_OF_CLASSIFIERS[method]
    settings = run(**options, classifies=True)
    tuned = add_method(model, ["classifier"], settings.methods[0], TuningArguments(**options))
    assert trainable_parameters(shape, settings) == sum(p.numel() for p in tuned.parameters() if p.requires_grad)


@pytest.mark.parametrize("method", [name for name in METHODS_OF_CLASSIFIERS if name != "head"])
def test_activations_of_encoders(method, tmp_path):
    from softlaunch.arguments import TuningArguments
    from softlaunch.tuning.classifier import add_method

    model, shape = encoder_and_shape("bert", tmp_path)
    options = METHODS_OF_CLASSIFIERS[method]
    settings = run(**options, classifies=True, per_device_train_batch_size=3, max_source_length=40)
    tuned = add_method(model, ["classifier"], settings.methods[0], TuningArguments(**options)).train()
    ids = torch.randint(3, 90, (3, 40))
    mask = torch.ones_like(ids)
    mask[0, -1] = 0
    kept = kept_bytes(tuned, input_ids=ids, attention_mask=mask)
    planned = activation_bytes(
        shape, settings, Precision.of(settings, Machines(1, 0)), Batch.of_training(settings), False
    )
    assert planned == pytest.approx(kept, rel=0.15)


def test_settings_of_classifiers(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    classes = tmp_path / "classes.txt"
    classes.write_text("sport\nmusic\nfilm\n")
    found = read_settings(["--model_name_or_path", str(tmp_path), "--do_predict", "--class_file", str(classes)])
    assert (found.classifies, found.methods, found.row_tokens, found.num_classes) == (True, ("lora",), 128, 3)
    assert found.evaluates
    assert not found.generates
    causal = read_settings(["--model_name_or_path", "m", "--do_predict"])
    assert (causal.classifies, causal.names_method, causal.generates) == (False, False, True)


@pytest.mark.parametrize(
    ("words", "methods"),
    [
        (["--prompt_init", "vocabulary", "--pre_seq_len", "8"], ("prompt_tuning",)),
        (["--encoder_type", "lstm", "--pre_seq_len", "8"], ("p_tuning",)),
        (["--ia3_target_modules", "down_proj"], ("ia3",)),
        (["--pre_seq_len", "8", "--lora_r", "4"], ("p_tuning_v2", "lora")),
        (["--lora_alpha", "16"], ("lora",)),
        (["--freeze_trainable_layers", "1"], ("freeze",)),
        ([], ("full",)),
    ],
)
def test_options_tell_the_method(words, methods):
    assert read_settings(["--model_name_or_path", "m", *words]).methods == methods


def test_a_frozen_encoder_is_held_and_no_more(tmp_path):
    _, shape = encoder_and_shape("bert", tmp_path)
    head, full = (
        training_memory(shape, run(tuning=name, classifies=True, per_device_eval_batch_size=1), ALONE, ONE_GPU)
        for name in ("head", "full")
    )
    assert head.parts["activations"] == 0
    assert head.peak_moment == "evaluation"
    assert head.peak < full.peak


# Settings


def test_defaults_and_names_are_those_of_the_arguments():
    options = all_options()
    for field in dataclasses.fields(RunSettings):
        if field.metadata:
            continue
        old = [name for name, new in OLD_NAMES.items() if new == field.name and name in options]
        option = options.get(field.name) or options[old[0]]
        default = getattr(option.default, "value", option.default)
        if not option.required and field.name != "optim":
            assert (default or None) == (field.default or None), field.name
    assert RunSettings().optim in options["optim"].choices


def test_recorded_names_are_those_of_the_options():
    """Names of other versions of transformers may be among them; one that lacks is looked for where it takes longer."""
    real = {*options.all_options(), *old_names.idle_names(), *old_names.old_names()}
    assert real <= names.NAMES, real - names.NAMES


def test_a_name_that_is_no_options(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CHATGLM2_6B))
    words = ["recipes/args/adgen_ptuning.json", "--model_name_or_path", str(tmp_path), "--no_do_eval"]
    parser = argparse.ArgumentParser()
    plan_command.add_arguments(parser)
    for wrong, meant in (("--gpu-memory-gb", "--gpu-memory-gib"), ("--learning_rat", "--learning_rate")):
        arguments, overrides = parser.parse_known_args([*words, wrong, "6"])
        arguments.overrides = overrides
        with pytest.raises(ArgumentError, match=f"did you mean {meant}"):
            plan_command.run(arguments)
    names.check_names(words)
    for zero in ("--tflops", "--link-gb-per-s"):
        with pytest.raises(ArgumentError, match=f"{zero} 0.0 must be above 0"):
            plan_command.run(parser.parse_args([*words[:1], zero, "0"]))


def test_settings_from_a_file_and_flags(tmp_path):
    file = tmp_path / "run.json"
    file.write_text('{"model_name_or_path": "m", "gradient_checkpointing": true, "learning_rate": 1, "do_train": true}')
    words = [str(file), "--max_steps", "7", "--bf16", "--no_do_train", "--quantization_bit", "null"]
    found = read_settings([*words, "--lora_target_modules", "q_proj", "v_proj"])
    assert found.activation_checkpointing
    assert (found.max_steps, found.bf16, found.do_train, found.quantization_bit) == (7, True, False, None)
    assert found.lora_target_modules == ["q_proj", "v_proj"]
    for wrong in (["--quantization_bit", "5"], ["--per_device_train_batch_size", "0"], ["--lora_r", "-1"]):
        with pytest.raises(ArgumentError, match=f"{wrong[0]} {wrong[1]}.* must be"):
            read_settings([str(file), *wrong])
    with pytest.raises(ArgumentError, match="max_steps"):
        read_settings([str(file), "--max_steps", "many"])
    with pytest.raises(ArgumentError, match="model_name_or_path is missing"):
        read_settings(["--max_steps", "7"])


def test_an_adapter_says_what_it_is(tmp_path):
    config = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    found = read_settings(["--model_name_or_path", "m", "--adapter", str(tmp_path)])
    assert (found.methods, found.lora_r, found.lora_target_modules) == (("lora",), 4, ["q_proj"])


def test_an_adapter_that_does_not_say_it(tmp_path):
    for config in ({"peft_type": "LORA", "target_modules": [3]}, {"peft_type": "P_TUNING", "num_virtual_tokens": "x"}):
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match="cannot be"):
            read_settings(["--model_name_or_path", "m", "--adapter", str(tmp_path)])


def test_numbers_that_are_none(chatglm2, tmp_path):
    for wrong in ({"lora_target_modules": [1]}, {"learning_rate": float("nan")}):
        (tmp_path / "run.json").write_text(json.dumps({"model_name_or_path": "m"} | wrong))
        with pytest.raises(ArgumentError, match="not of the type"):
            read_settings([str(tmp_path / "run.json")])
    with pytest.raises(ArgumentError, match="too large"):
        make_plan(chatglm2, run(pre_seq_len=8, train_file=__file__, num_train_epochs=1e308), ALONE, ONE_GPU)
    assert run(class_file="a\0b", num_labels=3).num_classes == 3


def test_settings_of_parsed_arguments(tmp_path):
    from softlaunch.arguments import parse_arguments

    words = ["--model_name_or_path", "m", "--do_train", "--train_file", "t", "--pre_seq_len", "4"]
    words += ["--gradient_checkpointing", "--output_dir", str(tmp_path)]
    arguments = parse_arguments(words)
    found = settings_of(arguments.model, arguments.tuning, arguments.data, arguments.training)
    assert found.new_tokens == read_settings(words).new_tokens
    unlike = {"optim": found.optim, "val_max_target_length": found.val_max_target_length}
    unlike |= {"learning_rate": found.learning_rate}  # each method has a default of its own
    assert found == dataclasses.replace(read_settings(words), **unlike)


# Memory


def kept_bytes(model, **inputs):
    """Of distinct tensors that one forward pass saves, parameters not counted."""
    held = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def save(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        output = model(**inputs)
    assert output.logits.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("method", ["prefix", "lora", "full", "ia3"])
def test_activations_are_what_autograd_keeps(family, method, tmp_path):
    """Bytes of distinct tensors that one forward pass of the blocks saves, parameters not counted."""
    rows, tokens, virtual = 3, 40, 6
    options = {
        "prefix": {"pre_seq_len": virtual},
        "lora": {"lora_r": 4},
        "full": {"tuning": "full"},
        "ia3": {"tuning": "ia3"},
    }[method]
    settings = run(per_device_train_batch_size=rows, max_source_length=20, max_target_length=19, **options)
    shape = shape_of(CONFIGS[family](), tmp_path)
    base = random_base(family).train()
    if method == "prefix":
        model = add_prefix(base, num_virtual_tokens=virtual).train()
    elif method == "ia3":
        model = add_ia3(base).train()
    else:
        names = lora_targets(shape, settings) if method == "lora" else []
        model = get_peft_model(base, LoraConfig(r=4, target_modules=names)).train() if names else base
    ids = torch.randint(3, 90, (rows, tokens))
    mask = torch.ones_like(ids)
    mask[0, -1] = 0
    kept = kept_bytes(model, input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=1)
    precision, batch = Precision.of(settings, Machines(1, 0)), Batch.of_training(settings)
    assert batch.tokens == tokens
    planned = activation_bytes(shape, settings, precision, batch, checkpointing=False)
    # In so small a model what is kept beside the blocks shows: embeddings, the last norm, the head's input
    assert planned == pytest.approx(kept, rel=0.15)


def test_documented_figures(chatglm2):
    """Those of docs/parallelism.md."""
    bf16 = run(pre_seq_len=128, bf16=True)
    assert training_memory(chatglm2, bf16, ALONE, ONE_GPU).parts["weights"] / GIB == pytest.approx(11.63, abs=0.01)
    for bits, gib in ((8, 6.32), (4, 3.74)):
        memory = training_memory(chatglm2, run(pre_seq_len=128, quantization_bit=bits), ALONE, ONE_GPU)
        assert memory.parts["weights"] / GIB == pytest.approx(gib, abs=0.01)
    one_row = run(pre_seq_len=128, bf16=True, max_source_length=128, max_target_length=127)
    activations = training_memory(chatglm2, one_row, ALONE, ONE_GPU).activations_if
    per_token_and_layer = 16 * 4096 + 6 * 13696
    prefix = 28 * (4 * 4096 * 128)
    assert activations[False] == pytest.approx(28 * 256 * per_token_and_layer + prefix, rel=0.02)
    assert activations[True] == pytest.approx(28 * 256 * 2 * 4096, rel=0.02)


@pytest.mark.parametrize(
    ("stage", "fsdp"), [(0, False), (1, False), (2, False), (3, False), (3, True)], ids=["ddp", "1", "2", "3", "fsdp2"]
)
def test_splitting_saves_memory(stage, fsdp, chatglm2):
    settings = run(tuning="full", bf16=True)
    strategy = Strategy("x", stage, fsdp=fsdp, deepspeed_file="x" if stage and not fsdp else None)
    peaks = [training_memory(chatglm2, settings, strategy, Machines(n, 8)).peak for n in (1, 2, 16)]
    assert peaks == sorted(peaks, reverse=True)
    assert (peaks[0] > peaks[2]) == (stage > 0)
    states = training_memory(chatglm2, settings, strategy, Machines(1, 8)).parts
    sixteen_bytes = sum(states[name] for name in ("trained", "gradients", "optimizer")) / chatglm2.parameters
    # DDP: float32 weights, copies that autocast keeps, gradients and their buckets, two moments. ZeRO: 16 bytes, split
    textbook = {0: 4 + 2 + 2 * 4 + 8, 1: 2 + 2 * 2 + 12 / 8, 2: 2 + (2 + 12) / 8, 3: (18 if fsdp else 16) / 8}[stage]
    assert sixteen_bytes == pytest.approx(textbook, rel=0.01)


def test_offloading_moves_memory_to_the_host(chatglm2):
    settings = run(tuning="full", bf16=True)
    zero2 = training_memory(chatglm2, settings, Strategy("x", 2, deepspeed_file="x"), EIGHT)
    offload = Strategy("x", 2, offloads_optimizer=True, deepspeed_file="x")
    offloaded = training_memory(chatglm2, settings, offload, EIGHT)
    assert offloaded.peak < zero2.peak
    assert offloaded.host >= 16 * chatglm2.parameters


def test_evaluation_and_generation_count(chatglm2):
    large = {"per_device_eval_batch_size": 256, "predict_with_generate": True, "do_eval": True}
    memory = training_memory(chatglm2, run(pre_seq_len=128, bf16=True, **large), ALONE, ONE_GPU)
    assert memory.peak_moment == "evaluation"
    assert memory.moments["generation"] > memory.moments["model loaded"]


# Advice


def test_it_fits_and_nothing_is_advised(chatglm2):
    plan = make_plan(chatglm2, run(pre_seq_len=128, quantization_bit=4), ALONE, Machines(gpu_memory_gib=8))
    assert plan.fits
    assert plan.changes == ()


@pytest.mark.parametrize(
    ("options", "machines", "first"),
    [
        (
            {"pre_seq_len": 128, "bf16": True, "per_device_train_batch_size": 4},
            Machines(gpu_memory_gib=16),
            "activation",
        ),
        ({"pre_seq_len": 128, "bf16": True}, Machines(gpu_memory_gib=12), "quantization_bit"),
        ({"tuning": "full", "bf16": True}, Machines(1, 8), "--launch-file"),
        (
            {"lora_r": 8, "bf16": True, "activation_checkpointing": True, "per_device_train_batch_size": 64},
            Machines(gpu_memory_gib=20),
            "per_device_train_batch_size",
        ),
    ],
)
def test_the_first_setting_to_change_makes_it_fit(options, machines, first, chatglm2):
    plan = make_plan(chatglm2, run(**options), ALONE, machines)
    assert not plan.fits
    assert plan.changes[0].name.startswith(first)
    change = plan.changes[-1]
    assert make_plan(chatglm2, change.settings, change.strategy, machines).fits
    rows = [s.per_device_train_batch_size * s.gradient_accumulation_steps for s in (plan.settings, change.settings)]
    assert rows[0] == rows[1], "an optimizer step sees as many rows as before"


def test_several_settings_where_one_is_not_enough(chatglm2):
    settings = run(pre_seq_len=128, bf16=True, per_device_train_batch_size=32, max_source_length=512)
    plan = make_plan(chatglm2, settings, ALONE, Machines(gpu_memory_gib=8))
    assert len(plan.changes) >= 2
    last = plan.changes[-1]
    assert make_plan(chatglm2, last.settings, last.strategy, plan.machines).fits


def test_cheap_settings_are_changed_before_dear_ones(chatglm2):
    settings = run(pre_seq_len=128, bf16=True, per_device_train_batch_size=32, max_source_length=512)
    plan = make_plan(chatglm2, settings, ALONE, Machines(gpu_memory_gib=14))
    assert [change.name for change in plan.changes] == ["activation_checkpointing", "per_device_train_batch_size"]


def test_nothing_helps(chatglm2):
    plan = make_plan(chatglm2, run(pre_seq_len=128, quantization_bit=4), ALONE, Machines(gpu_memory_gib=3))
    assert not plan.fits
    assert plan.changes == ()


# Work


@pytest.mark.parametrize(("rows", "epochs", "nodes"), [(100, 3.0, 1), (101, 2.5, 2), (7, 1.0, 4)])
def test_steps_are_counted_as_trainer_does(rows, epochs, nodes, chatglm2, tmp_path):
    data = tmp_path / "rows.json"
    data.write_text('{"prompt": "x"}\n' * rows)
    settings = run(
        train_file=str(data),
        num_train_epochs=epochs,
        per_device_train_batch_size=3,
        gradient_accumulation_steps=2,
        pre_seq_len=8,
    )
    batches = -(-rows // (3 * nodes))
    args = type("Args", (), {"gradient_accumulation_steps": 2, "num_train_epochs": epochs, "max_steps": -1})()
    trainer = Trainer.__new__(Trainer)
    trainer.num_examples = lambda _: rows
    trainer.get_total_train_batch_size = lambda _: 6 * nodes
    trainer.get_sp_size = lambda: 1
    expected = trainer.set_initial_training_values(args, range(batches))[-1]
    assert plan_workload(chatglm2, settings, ALONE, Machines(nodes, 1)).num_steps == expected


@pytest.mark.parametrize(
    ("name", "text", "rows"),
    [
        ("a.json", '{"prompt": 1}\n{"prompt": 2}', 2),
        ("b.json", '[{"prompt": 1}, {"prompt": 2}, {"prompt": 3}]', 3),
        ("c.csv", "prompt,response\n1,2\n3,4\n", 2),
        ("d.jsonl", "", None),
    ],
)
def test_rows(name, text, rows, tmp_path):
    file = tmp_path / name
    file.write_text(text)
    assert count_rows(str(file), "prompt") == rows
    assert count_rows(str(tmp_path / "nowhere"), "prompt") is None


def test_rows_of_parquet(tmp_path):
    import datasets

    datasets.Dataset.from_dict({"prompt": ["a"] * 5}).to_parquet(tmp_path / "rows.parquet")
    assert count_rows(str(tmp_path / "rows.parquet"), "prompt") == 5


def test_what_is_sent(chatglm2):
    """The table in docs/parallelism.md, 8 processes."""
    settings = run(pre_seq_len=128, bf16=True)
    ddp = sent_bytes(chatglm2, settings, Strategy("ddp"), EIGHT)
    assert ddp / 2**20 == pytest.approx(12.25, abs=0.1)
    zero3 = Strategy("zero3", 3, deepspeed_file="x")
    assert sent_bytes(chatglm2, settings, zero3, EIGHT) / GIB == pytest.approx(10.2 * 2, abs=0.1)
    accumulated = dataclasses.replace(settings, gradient_accumulation_steps=16)
    assert sent_bytes(chatglm2, accumulated, Strategy("ddp"), EIGHT) == ddp
    assert sent_bytes(chatglm2, accumulated, zero3, EIGHT) == pytest.approx(
        16 * sent_bytes(chatglm2, settings, zero3, EIGHT), rel=1e-6
    )
    assert sent_bytes(chatglm2, settings, Strategy("ddp"), Machines()) == 0


def test_thousands_of_processes(chatglm2):
    plan = make_plan(chatglm2, run(tuning="full", bf16=True), Strategy("z", 3, deepspeed_file="x"), Machines(512, 8))
    assert plan.fits
    assert plan.workload.rows_per_step == 4096


@pytest.mark.parametrize(("size", "message"), [(None, "'hidden_size' is missing"), ("64", "hidden_size is '64'")])
def test_a_config_without_a_size(size, message, tmp_path):
    released = json.loads((DEMO_BASE / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps({**released, "hidden_size": size}))
    with pytest.raises(CheckpointError, match=message):
        read_shape(tmp_path)


def test_checkpoints_on_disk(chatglm2):
    settings = run(pre_seq_len=128, max_steps=3000, save_steps=1000)
    work = plan_workload(chatglm2, settings, ALONE, ONE_GPU)
    assert work.num_checkpoints == 3
    assert work.checkpoint_bytes == pytest.approx(1_835_008 * 12, rel=0.05)
    limited = dataclasses.replace(settings, save_total_limit=1)
    assert plan_workload(chatglm2, limited, ALONE, ONE_GPU).disk_bytes < work.disk_bytes
    none = dataclasses.replace(settings, save_strategy="no")
    assert plan_workload(chatglm2, none, ALONE, ONE_GPU).disk_bytes == work.checkpoint_bytes  # room for the result


@pytest.mark.parametrize(
    ("options", "stage", "megabytes"),
    [
        ({"tuning": "full", "bf16": True}, 0, 3 * 10.044),
        ({"tuning": "full", "bf16": True}, 1, 10.044 + 2 * 15.066 + 5.033),
        ({"tuning": "full"}, 1, 10.044 + 2 * 15.065 + 10.053),
        ({"tuning": "freeze", "freeze_trainable_layers": 1}, 1, 10.044 + 2 * 2.369 + 10.055),
        ({"lora_r": 4}, 1, 0.060 + 2 * 0.091 + 0.079),
        ({"lora_r": 4}, 3, 0.060 + 2 * 0.090),
    ],
)
def test_checkpoints_are_as_large_as_those_that_runs_left(options, stage, megabytes):
    """Of the demo base, on two processes; random states, which are counted apart, are not among the figures."""
    strategy = Strategy("x", stage, deepspeed_file="x" if stage else None)
    work = plan_workload(read_shape("recipes/demo/base"), run(**options), strategy, Machines(2, 0))
    assert (work.checkpoint_bytes - 400_000) / 1e6 == pytest.approx(megabytes, rel=0.02, abs=0.06)


def test_deepspeed_makes_a_classifiers_frozen_weights_half_of_them(tmp_path):
    _, shape = encoder_and_shape("bert", tmp_path)
    settings = run(lora_r=4, classifies=True, bf16=True)
    plain, zero = (
        training_memory(shape, settings, s, EIGHT).parts for s in (ALONE, Strategy("x", 2, deepspeed_file="x"))
    )
    assert zero["weights"] == plain["weights"] // 2
    assert zero["trained"] < plain["trained"]


# Launch files


def test_strategies_of_the_launch_files(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    from tests.unit.test_layout import ROOT

    found = {file.stem: read_strategy(str(file)) for file in (ROOT / "launch" / "accelerate").glob("*.yaml")}
    assert {name: strategy.stage for name, strategy in found.items()} == {
        **dict.fromkeys(("cpu", "ddp", "single_gpu"), 0),
        **{"zero1": 1, "zero2": 2, "zero3": 3, "zero2_offload": 2, "zero3_offload": 3, "fsdp2": 3},
    }
    assert {name for name, strategy in found.items() if strategy.offloads_optimizer} == {
        "zero2_offload",
        "zero3_offload",
    }
    assert {name for name, strategy in found.items() if strategy.offloads_parameters} == {"zero3_offload"}


def test_what_is_no_launch_file(tmp_path):
    with pytest.raises(LaunchError, match="cannot be read"):
        read_strategy("nowhere.yaml")
    (tmp_path / "a.yaml").write_text("a: [")
    with pytest.raises(LaunchError, match="no launch file"):
        read_strategy(str(tmp_path / "a.yaml"))


# The command


def test_the_command_is_quick_and_needs_no_torch(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CHATGLM2_6B))
    script = (
        "import sys; from softlaunch.cli import main; main(); assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    words = ["plan", "recipes/args/adgen_ptuning.json", "--model_name_or_path", str(tmp_path), "--gpu-memory-gib", "6"]
    times = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=False)
        times.append(time.perf_counter() - start)
    assert done.returncode == 0, done.stderr
    assert "does not fit: 6.1" in done.stdout
    assert "activation_checkpointing true" in done.stdout
    assert min(times) < 0.5


# The benchmark that holds it against measurements


@pytest.mark.parametrize(("measured", "code"), [(733, 0), (500, 1)])
def test_calibration_fails_where_the_plan_is_wrong(measured, code, tmp_path):
    (tmp_path / "found.json").write_text(json.dumps({"GLM, prefix": measured}))
    command = ["benchmarks/plan_calibration.py", "--only", "GLM, prefix", "--json", str(tmp_path / "found.json")]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert "1 configurations, largest error" in done.stdout

"""What `softlaunch plan` says a training run takes above the loaded model, against what it takes.

    python benchmarks/plan_calibration.py                    # about 20 s per configuration; --only NAME … for some
    python benchmarks/plan_calibration.py --json found.json  # keeps the figures, and measures only what is not there

It ends with exit code 1 when the plan is wrong by more than 15 %.

Every configuration is a process of its own: a random model of at least 100M parameters is loaded, then two steps of
CausalTrainer (ClassifierTrainer for BERT) are run on rows as long as the limits allow. Measured is the peak above the
memory that the loaded model takes: on a GPU what torch allocated, on a CPU what is resident, with an allocator that
gives back at once what is freed (`MALLOC_MMAP_THRESHOLD_`). On a CPU there is no CUDA context, and the plan's part for
it is left out.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

GLM = {
    "model_type": "glm",
    "hidden_size": 512,
    "intermediate_size": 1712,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 65_024,
    "max_position_embeddings": 8192,
    "attention_bias": True,
}
# fewer rows of the vocabulary, more and wider layers, and as many key/value heads as queries
LLAMA = {
    "model_type": "llama",
    "hidden_size": 640,
    "intermediate_size": 1792,
    "num_hidden_layers": 14,
    "num_attention_heads": 10,
    "num_key_value_heads": 10,
    "head_dim": 64,
    "vocab_size": 32_000,
    "max_position_embeddings": 8192,
}
QWEN2 = {**LLAMA, "model_type": "qwen2", "num_key_value_heads": 2, "vocab_size": 48_000}
QWEN3 = {**QWEN2, "model_type": "qwen3", "head_dim": 128, "num_attention_heads": 8}
BERT = {
    "model_type": "bert",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "vocab_size": 21_128,
    "max_position_embeddings": 512,
}
CLASSIFIED = {"classifies": True, "max_source_length": 128, "per_device_train_batch_size": 8}
PREFIX = {"pre_seq_len": 128}
LORA = {"lora_r": 8}
CHECKPOINTING = {"activation_checkpointing": True}
LONG = {"max_source_length": 768, "max_target_length": 128, "per_device_train_batch_size": 2}
BF16 = {"bf16": True}
CONFIGURATIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "GLM, prefix": (GLM, PREFIX),
    "GLM, prefix, checkpointing": (GLM, PREFIX | CHECKPOINTING),
    "GLM, prefix, long rows": (GLM, PREFIX | LONG),
    "GLM, prefix, long rows, checkpointing": (GLM, PREFIX | LONG | CHECKPOINTING),
    "GLM, prefix with projection": (GLM, PREFIX | {"prefix_projection": True}),
    "GLM, prefix, loss on all tokens": (GLM, PREFIX | {"train_on_all_turns": True}),
    "GLM, prefix, bfloat16": (GLM, PREFIX | BF16),
    "GLM, prefix, 4 bits": (GLM, PREFIX | {"quantization_bit": 4}),
    "GLM, prefix, 8 bits": (GLM, PREFIX | {"quantization_bit": 8}),
    "GLM, LoRA": (GLM, LORA),
    "GLM, LoRA, all layers, long rows": (GLM, LORA | LONG | {"lora_target_modules": "all-linear"}),
    "GLM, LoRA, checkpointing": (GLM, LORA | CHECKPOINTING),
    "GLM, LoRA, bfloat16": (GLM, LORA | LONG | BF16),
    "GLM, prompt tuning": (GLM, {"tuning": "prompt_tuning", "pre_seq_len": 64}),
    "GLM, full": (GLM, {"tuning": "full"}),
    "GLM, full, long rows": (GLM, {"tuning": "full"} | LONG),
    "GLM, full, checkpointing, accumulation": (
        GLM,
        {"tuning": "full", "gradient_accumulation_steps": 2} | CHECKPOINTING,
    ),
    "GLM, last two layers": (GLM, {"tuning": "freeze"}),
    "Llama, prefix": (LLAMA, PREFIX | LONG),
    "Llama, full, bfloat16": (LLAMA, {"tuning": "full"} | LONG | BF16),
    "Qwen2, LoRA": (QWEN2, LORA | LONG),
    "Qwen3, prefix": (QWEN3, PREFIX | LONG),
    "Qwen3, LoRA, long rows, checkpointing": (QWEN3, LORA | LONG | CHECKPOINTING),
    "GLM, IA3": (GLM, {"tuning": "ia3"} | LONG),
    "BERT, LoRA with dropout": (BERT, CLASSIFIED | LORA | {"lora_dropout": 0.1}),
    "BERT, prefix": (BERT, CLASSIFIED | {"pre_seq_len": 32}),
    "BERT, full": (BERT, CLASSIFIED | {"tuning": "full"}),
}
BATCH_SIZE, NUM_STEPS = 4, 2
LARGEST_ERROR = 0.15
MIB = 2**20
ENCODER = Path(__file__).parents[1] / "recipes" / "demo_titles" / "base"  # for its tokenizer
RESIDENT_IS_IN_USE = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def settings(options: dict[str, Any]) -> Any:
    from softlaunch.launching.settings import RunSettings

    dtype = "bfloat16" if options.get("bf16") and options.get("tuning") != "full" else "float32"
    defaults = {"per_device_train_batch_size": BATCH_SIZE, "do_train": True, "dtype": dtype}
    return RunSettings(**(defaults | options))


def planned(config: dict[str, Any], options: dict[str, Any], on_gpu: bool) -> float:
    from softlaunch.launching.memory import training_memory
    from softlaunch.launching.shape import read_shape
    from softlaunch.launching.strategy import Machines, Strategy

    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "config.json").write_text(json.dumps(config))
        shape = read_shape(directory)
    memory = training_memory(shape, settings(options), Strategy("single"), Machines(gpus_per_node=int(on_gpu)))
    return memory.increment / MIB


def measure(name: str) -> float:
    """Runs in a process of its own."""
    sys.path.insert(0, str(Path(__file__).parent))
    from prefix_speed import Peak

    config, options = CONFIGURATIONS[name]
    run = settings(options)
    train(load({**config, "num_hidden_layers": 2, "vocab_size": 128}, run), run)  # libraries load what they load late
    model = load(config, run)
    assert sum(p.numel() for p in model.parameters()) >= 1e8 or run.quantization_bit
    for parameter in model.parameters():
        parameter.sum()  # weights that were mapped from a file are resident once they have been read
    with Peak() as peak:
        train(model, run)
    return peak.mib


def load(config: dict[str, Any], run: Any) -> Any:
    import torch
    from prefix_speed import device
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    from softlaunch.models.quantize import quantization_config

    torch.manual_seed(0)
    kind, dtype = (
        AutoModelForSequenceClassification if run.classifies else AutoModelForCausalLM,
        getattr(torch, run.dtype),
    )
    model = kind.from_config(AutoConfig.for_model(**config, pad_token_id=0), dtype=dtype)
    if run.quantization_bit is None:
        return model.to(device())
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        del model
        packed = quantization_config(run.quantization_bit, dtype)
        return kind.from_pretrained(directory, quantization_config=packed, dtype=dtype)


def train(model: Any, run: Any) -> None:
    import datasets
    import torch

    from softlaunch.arguments import TrainingArguments
    from softlaunch.training.trainer import CausalTrainer

    rows = run.per_device_train_batch_size * run.gradient_accumulation_steps * NUM_STEPS
    ids = torch.randint(3, model.config.vocab_size, (rows, run.row_tokens)).tolist()
    prompt = run.row_tokens - run.label_tokens
    ids[0].pop()  # rows of unlike length, as real ones are: attention gets a mask
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        max_steps=NUM_STEPS,
        per_device_train_batch_size=run.per_device_train_batch_size,
        gradient_accumulation_steps=run.gradient_accumulation_steps,
        gradient_checkpointing=run.activation_checkpointing,
        bf16=run.bf16,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=1000,
    )
    if run.classifies:
        train_classifier(model, run, arguments, ids)
        return
    labels = [[-100] * prompt + row[prompt:] for row in ids]
    data = datasets.Dataset.from_dict({"input_ids": ids, "labels": labels})
    CausalTrainer(model=with_method(model, run), args=arguments, train_dataset=data, pad_token_id=0).train()


def train_classifier(model: Any, run: Any, arguments: Any, ids: list[list[int]]) -> None:
    import datasets

    from softlaunch.arguments import TuningArguments
    from softlaunch.evaluation.label_metrics import label_scores
    from softlaunch.models.encoder import load_text_tokenizer
    from softlaunch.training.classifier import ClassifierTrainer
    from softlaunch.tuning.classifier import ClassifierSettings, add_method

    method = run.methods[0]
    tuning = TuningArguments(pre_seq_len=run.pre_seq_len, lora_r=run.lora_r, lora_dropout=run.lora_dropout)
    mask = [[1] * len(row) for row in ids]
    columns = {"input_ids": ids, "attention_mask": mask, "labels": [n % 2 for n in range(len(ids))]}
    ClassifierTrainer(
        model=add_method(model, ["classifier"], method, tuning),
        args=arguments,
        train_dataset=datasets.Dataset.from_dict({**columns, "row_id": list(range(len(ids)))}),
        tokenizer=load_text_tokenizer(str(ENCODER), 64),  # it only pads
        settings=ClassifierSettings(method, "", run.max_source_length, False, ["classifier"]),
        scores=label_scores,
    ).train()


def with_method(model: Any, run: Any) -> Any:
    from softlaunch.tuning import add_ia3, add_lora, add_prefix, add_prompt_tuning, train_all, train_last_layers

    match run.methods[0]:
        case "p_tuning_v2":
            return add_prefix(model, num_virtual_tokens=run.pre_seq_len, projection=run.prefix_projection)
        case "lora":
            return add_lora(model, r=run.lora_r, target_modules=run.lora_target_modules)
        case "ia3":
            return add_ia3(model)
        case "prompt_tuning":
            return add_prompt_tuning(model, num_virtual_tokens=run.pre_seq_len)
        case "freeze":
            return train_last_layers(model, 2)
    return train_all(model)


def measure_apart(name: str) -> float:
    done = subprocess.run(
        [sys.executable, __file__, "--measure", name],
        env={**os.environ, **RESIDENT_IS_IN_USE},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{name}: {done.stderr[-3000:]}")
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CONFIGURATIONS, default=list(CONFIGURATIONS), metavar="NAME")
    parser.add_argument("--json", type=Path, help="measured figures, read and written")
    parser.add_argument("--measure", choices=CONFIGURATIONS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(measure(args.measure))
        return
    known = json.loads(args.json.read_text()) if args.json and args.json.exists() else {}
    errors = []
    print(f"{'MiB above the loaded model':42}{'planned':>9}{'measured':>9}{'error':>7}")
    for name in args.only:
        if name not in known:
            known[name] = measure_apart(name)
            if args.json:
                args.json.write_text(json.dumps(known, indent=1) + "\n")
        plan = planned(*CONFIGURATIONS[name], on_gpu=False)
        errors.append(plan / known[name] - 1)
        print(f"{name:42}{plan:9.0f}{known[name]:9.0f}{errors[-1]:+7.1%}")
    largest = max(errors, key=abs)
    print(f"{len(errors)} configurations, largest error {largest:+.1%}")
    sys.exit(int(abs(largest) > LARGEST_ERROR))


if __name__ == "__main__":
    main()

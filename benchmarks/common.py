"""What the speed benchmarks share: a base of ChatGLM2's proportions, rows of ADGEN's lengths, a clock, peak memory."""

import argparse
import ctypes
import gc
import json
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import GlmConfig, GlmForCausalLM, TrainerCallback

from softlaunch.arguments import TrainingArguments
from softlaunch.data.collate import TrainingCollator
from softlaunch.data.encode import EncodeOptions, encode_for_training
from softlaunch.data.order import LengthGroupedSampler
from softlaunch.models import load_tokenizer

SOURCE_LENGTH, TARGET_LENGTH = 64, 128
# Shares of the rows and ADGEN's token counts there, with ChatGLM2's tokenizer; a prompt adds 14 tokens of template
QUANTILES = (0.0, 0.5, 0.95, 1.0)
PROMPT_TOKENS, ANSWER_TOKENS = (8, 37, 63, 109), (34, 75, 110, 163)
MIB = 2**20


def draw(rng: random.Random, tokens: tuple[int, ...]) -> int:
    share = rng.random()
    place = max(i for i in range(3) if QUANTILES[i] <= share)
    within = (share - QUANTILES[place]) / (QUANTILES[place + 1] - QUANTILES[place])
    return round(tokens[place] + within * (tokens[place + 1] - tokens[place]))


def rows(args: argparse.Namespace, num_rows: int) -> datasets.Dataset:
    if args.data:
        lines = Path(args.data).read_text(encoding="utf-8").splitlines()[:num_rows]
        records = [json.loads(line) for line in lines]
        batch = {"prompt": [r["content"] for r in records], "response": [r["summary"] for r in records]}
        options = EncodeOptions(SOURCE_LENGTH, TARGET_LENGTH)
        encoded = encode_for_training(batch, load_tokenizer(args.tokenizer), options)
        return datasets.Dataset.from_dict({k: encoded[k] for k in ("input_ids", "labels")})
    rng, ids, labels = random.Random(0), [], []
    for _ in range(num_rows):
        prompt = min(draw(rng, PROMPT_TOKENS) + 14, SOURCE_LENGTH)
        answer = min(draw(rng, ANSWER_TOKENS), TARGET_LENGTH) + 1
        row = [rng.randint(3, 64_000) for _ in range(prompt + answer)]
        ids.append(row)
        labels.append([-100] * prompt + row[prompt:])
    return datasets.Dataset.from_dict({"input_ids": ids, "labels": labels})


def base(args: argparse.Namespace) -> GlmForCausalLM:
    """A random model of `num_layers`, `hidden_size`, `dtype` and, unless it is 64, `head_dim`, on the device."""
    torch.manual_seed(0)
    head_dim = getattr(args, "head_dim", 64)
    config = GlmConfig(
        vocab_size=65_024,
        hidden_size=args.hidden_size,
        intermediate_size=args.hidden_size * 107 // 32,  # ChatGLM2's proportions
        num_hidden_layers=args.num_layers,
        num_attention_heads=args.hidden_size // head_dim,
        num_key_value_heads=2,
        head_dim=head_dim,
        attention_bias=True,
        pad_token_id=0,
        eos_token_id=2,
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, args.dtype))  # 6 billion float32 numbers would not fit first
    try:
        with torch.device(device()):
            return GlmForCausalLM(config)
    finally:
        torch.set_default_dtype(before)


def training_arguments(args: argparse.Namespace, **options: Any) -> TrainingArguments:
    """Of a run of the trainer that saves and shows nothing; `options` on top."""
    return TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        max_steps=args.steps,
        per_device_train_batch_size=args.batch_size,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        bf16=args.dtype == "bfloat16",
        **options,
    )


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


class Peak:
    """Peak memory in MiB between entering and leaving, above what was in use at the beginning."""

    def __enter__(self) -> "Peak":
        gc.collect()
        if device() == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
            self.before = self._status("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        peak = torch.cuda.max_memory_allocated() if device() == "cuda" else self._status("VmHWM")
        self.mib = (peak - self.before) / MIB

    @staticmethod
    def _status(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


class Clock(TrainerCallback):
    def __init__(self) -> None:
        self.times = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.start = now()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.times.append(now() - self.start)


def now() -> float:
    if device() == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def batches(data: datasets.Dataset, args: argparse.Namespace) -> Iterator[dict[str, torch.Tensor]]:
    """The batches of CausalTrainer, in its order."""
    order = list(LengthGroupedSampler([len(i) for i in data["input_ids"]], args.batch_size, seed=42))
    collate = TrainingCollator(pad_token_id=0)
    for start in range(0, args.steps * args.batch_size, args.batch_size):
        yield collate(data.select(order[start : start + args.batch_size]))

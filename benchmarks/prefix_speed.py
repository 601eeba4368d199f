"""Speed and memory of P-Tuning v2: as the original does it, as PEFT does, and ours, on the same weights and rows.

    python benchmarks/prefix_speed.py                                     # rows of ADGEN's lengths, about 3 minutes
    python benchmarks/prefix_speed.py --data train.json --tokenizer DIR   # real rows

a  original: every row padded to max_source_length + max_target_length + 1, logits everywhere, checkpointing
b  PEFT: prefix through the cache, rows padded to their batch, logits everywhere, no checkpointing (it refuses it)
c  ours with checkpointing, through CausalTrainer
d  ours without checkpointing, through CausalTrainer

a and b are bare loops over the same rows in the same order, without what a trainer costs. Weights are random: a step
costs the same whatever they are. Peak memory is counted above the loaded model.
"""

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
from peft import PrefixTuningConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from transformers import GlmConfig, GlmForCausalLM, TrainerCallback

from softlaunch.arguments import TrainingArguments
from softlaunch.data.collate import TrainingCollator
from softlaunch.data.encode import EncodeOptions, encode_for_training
from softlaunch.data.order import LengthGroupedSampler
from softlaunch.evaluation.predict import GenerationOptions, generate_answers
from softlaunch.models import load_tokenizer
from softlaunch.training.trainer import CausalTrainer
from softlaunch.tuning import add_prefix

SOURCE_LENGTH, TARGET_LENGTH = 64, 128
# Shares of the rows and ADGEN's token counts there, with ChatGLM2's tokenizer; a prompt adds 14 tokens of template
QUANTILES = (0.0, 0.5, 0.95, 1.0)
PROMPT_TOKENS, ANSWER_TOKENS = (8, 37, 63, 109), (34, 75, 110, 163)
MIB = 2**20


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="JSON lines with content and summary, in place of generated rows")
    parser.add_argument("--tokenizer", help="released ChatGLM2 directory, with --data")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--pre_seq_len", type=int, default=128)
    parser.add_argument("--num_layers", type=int, default=10)
    parser.add_argument("--hidden_size", type=int, default=512)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--generate_rows", type=int, default=64, help="0 leaves generation out")
    parser.add_argument("--generate_batch_size", type=int, default=32)
    parser.add_argument("--json", type=Path, help="write the figures there too")
    return parser.parse_args()


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
    torch.manual_seed(0)
    config = GlmConfig(
        vocab_size=65_024,
        hidden_size=args.hidden_size,
        intermediate_size=args.hidden_size * 107 // 32,  # ChatGLM2's proportions
        num_hidden_layers=args.num_layers,
        num_attention_heads=args.hidden_size // 64,
        num_key_value_heads=2,
        head_dim=64,
        attention_bias=True,
        pad_token_id=0,
        eos_token_id=2,
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    )
    return GlmForCausalLM(config).to(device(), getattr(torch, args.dtype))


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


def bare_loop(model: Any, data: datasets.Dataset, args: argparse.Namespace, pad_to: int | None) -> list[float]:
    """Seconds of every step of forward, backward and AdamW with the model's own loss."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    times = []
    model.train()
    for batch in batches(data, args):
        start = now()
        if pad_to:
            missing = (0, pad_to - batch["input_ids"].shape[1])
            fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
            batch = {k: torch.nn.functional.pad(v, missing, value=fill[k]) for k, v in batch.items()}
        batch = {k: v.to(device()) for k, v in batch.items()}
        model(**batch, use_cache=pad_to is None).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        times.append(now() - start)
    return times


def ours(data: datasets.Dataset, args: argparse.Namespace, checkpointing: bool) -> tuple[list[float], float]:
    model, clock = add_prefix(base(args), num_virtual_tokens=args.pre_seq_len), Clock()
    training = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        max_steps=args.steps,
        per_device_train_batch_size=args.batch_size,
        gradient_checkpointing=checkpointing,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=1000,
        bf16=args.dtype == "bfloat16",
    )
    trainer = CausalTrainer(model=model, args=training, train_dataset=data, pad_token_id=0, callbacks=[clock])
    with Peak() as peak:
        trainer.train()
    return clock.times, peak.mib


def original(data: datasets.Dataset, args: argparse.Namespace) -> tuple[list[float], float]:
    model = add_prefix(base(args), num_virtual_tokens=args.pre_seq_len)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with Peak() as peak:
        times = bare_loop(model, data, args, pad_to=SOURCE_LENGTH + TARGET_LENGTH + 1)
    return times, peak.mib


def peft(data: datasets.Dataset, args: argparse.Namespace) -> tuple[list[float], float]:
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=args.pre_seq_len)
    model = get_peft_model(base(args), config)
    with Peak() as peak:
        times = bare_loop(model, data, args, pad_to=None)
    return times, peak.mib


def matmul_rate(args: argparse.Namespace) -> float:
    """FLOP/s of a 2048 × 2048 × 2048 product in the benchmark's dtype, the best of five."""
    a, b = (torch.randn(2048, 2048, dtype=getattr(torch, args.dtype), device=device()) for _ in range(2))
    best = float("inf")
    for _ in range(5):
        start = now()
        a @ b
        best = min(best, now() - start)
    return 2 * 2048**3 / best


def useful_flop(data: datasets.Dataset, args: argparse.Namespace) -> tuple[float, int]:
    """What the steps need at least (forward and backward through frozen weights, logits at labels), and real tokens."""
    model = base(args)
    head = model.lm_head.weight.numel()
    layers = sum(p.numel() for p in model.parameters()) - 2 * head
    real = labels = 0
    for batch in batches(data, args):
        real += int(batch["attention_mask"].sum())
        labels += int((batch["labels"] != -100).sum())
    return 4.0 * (layers * real + head * labels), real


def generation(data: datasets.Dataset, args: argparse.Namespace) -> dict[str, float]:
    """Tokens per second at batch 1 and batched, and how many answers are equal."""
    model = add_prefix(base(args), num_virtual_tokens=args.pre_seq_len)
    with torch.no_grad():  # decided answers: with small random weights the likeliest tokens are nearly tied
        model.base_model.lm_head.weight.mul_(50)
    data = data.select(range(args.generate_rows))
    prompts = [[token for token, label in zip(r["input_ids"], r["labels"], strict=True) if label == -100] for r in data]
    prompts = datasets.Dataset.from_dict(
        {"input_ids": prompts, "reference": [""] * len(prompts), "row_id": list(range(len(prompts)))}
    )
    figures, answers = {}, []
    for batch_size in (1, args.generate_batch_size):
        start, tokenizer = now(), _Ids()
        records = list(generate_answers(model, tokenizer, prompts, GenerationOptions(32), batch_size=batch_size))
        seconds = now() - start
        figures[f"batch {batch_size}"] = sum(len(r["predict"].split()) for r in records) / seconds
        answers.append({r["row_id"]: r["predict"] for r in records})
    figures["equal answers"] = sum(answers[0][row] == answers[1][row] for row in answers[0])
    return figures


class _Ids:
    """Stands in for a tokenizer: the text is the ids."""

    pad_token_id, eos_token_id = 0, 2

    def get_vocab(self) -> dict[str, int]:
        return {}

    def batch_decode(self, ids: torch.Tensor, skip_special_tokens: bool) -> list[str]:
        return [" ".join(str(i) for i in row if i > 2) for row in ids.tolist()]


def main() -> None:
    args = parse_arguments()
    data = rows(args, max(args.steps * args.batch_size, args.generate_rows) * 4)
    data = data.select(range(args.steps * args.batch_size))
    rate, (flop, real) = matmul_rate(args), useful_flop(data, args)
    table = Table(title=f"{args.steps} steps of {args.batch_size} rows, {rate / 1e9:.0f} GFLOP/s in a product")
    for name in ("", "s/step", "real tokens/s", "useful share of the product's rate", "peak MiB", "× original"):
        table.add_column(name, justify="left" if not name else "right")
    figures: dict[str, Any] = {"threads": torch.get_num_threads(), "matmul_gflops": rate / 1e9}
    variants = {
        "a original": lambda: original(data, args),
        "b PEFT": lambda: peft(data, args),
        "c ours, checkpointing": lambda: ours(data, args, True),
        "d ours": lambda: ours(data, args, False),
    }
    for name, run in variants.items():
        times, mib = run()
        step = sum(times[1:]) / len(times[1:])  # the first one warms up, and has the longest rows
        figures[name] = {"s_per_step": step, "peak_mib": mib, "times": times}
        speed_up = figures["a original"]["s_per_step"] / step
        share = flop / args.steps / step / rate
        cells = (f"{step:.3f}", f"{real / args.steps / step:.0f}", f"{share:.0%}", f"{mib:.0f}", f"{speed_up:.2f}")
        table.add_row(name, *cells)
    Console(width=120).print(table)
    if args.generate_rows:
        figures["generation"] = generation(rows(args, args.generate_rows * 4), args)
        for name, value in figures["generation"].items():
            print(f"generation, {name}: {value:.0f}" + ("" if "equal" in name else " tokens/s"))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

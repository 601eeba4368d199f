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
import json
from pathlib import Path
from typing import Any

import datasets
import torch
from common import SOURCE_LENGTH, TARGET_LENGTH, Clock, Peak, base, batches, device, now, rows, training_arguments
from peft import PrefixTuningConfig, get_peft_model
from rich.console import Console
from rich.table import Table

from softlaunch.evaluation.predict import GenerationOptions, generate_answers
from softlaunch.training.trainer import CausalTrainer
from softlaunch.tuning import add_prefix


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
    training = training_arguments(args, gradient_checkpointing=checkpointing, logging_steps=1000)
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

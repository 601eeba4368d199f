"""Speed of LoRA: the recipe's trainer against a bare loop with logits at label positions, on the same weights and rows.

    python benchmarks/lora_speed.py        # rows of ADGEN's lengths, about 2 minutes

Both see the same batches in the same order and take turns, `--repeats` times, for the speed of a machine drifts. The
bare loop is forward, backward, clipping and AdamW; the trainer also counts tokens, looks for losses and gradients that
are not finite, steps a schedule, and logs. What is measured is the whole time from the end of the first step, which
warms up, to the end of the last: fetching batches and logging are part of it.
"""

import argparse
from typing import Any

import datasets
import torch
from common import base, batches, device, now, rows, training_arguments
from rich.console import Console
from rich.table import Table
from transformers import TrainerCallback

from softlaunch.training.label_logits import LogitsAtLabels
from softlaunch.training.trainer import CausalTrainer
from softlaunch.tuning import AdapterModel, add_lora


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="JSON lines with content and summary, in place of generated rows")
    parser.add_argument("--tokenizer", help="released ChatGLM2 directory, with --data")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--r", type=int, default=8)
    parser.add_argument("--num_layers", type=int, default=10)
    parser.add_argument("--hidden_size", type=int, default=512)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    return parser.parse_args()


class Span(TrainerCallback):
    """The time from the end of the first step to the end of training."""

    def __init__(self) -> None:
        self.start = self.end = 0.0

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.start = self.start or now()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.end = now()


def bare_loop(model: AdapterModel, data: datasets.Dataset, args: argparse.Namespace) -> float:
    """Seconds per step."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer, at_labels, span = torch.optim.AdamW(parameters, lr=1e-4, fused=True), LogitsAtLabels(model), Span()
    model.train()
    for batch in batches(data, args):
        batch = {name: tensor.to(device()) for name, tensor in batch.items()}
        targets = batch["labels"][:, 1:]
        kept = torch.nn.functional.pad(targets != -100, (0, 1))
        with at_labels.at(kept):
            ids, mask = batch["input_ids"], batch["attention_mask"]
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        torch.nn.functional.cross_entropy(logits.float(), targets[targets != -100]).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        span.on_step_end()
    return (now() - span.start) / (args.steps - 1)


def recipe(model: AdapterModel, data: datasets.Dataset, args: argparse.Namespace) -> float:
    """Seconds per step of the recipe's trainer with its default options."""
    span = Span()
    training = training_arguments(args, learning_rate=1e-4, logging_steps=4)
    CausalTrainer(model=model, args=training, train_dataset=data, pad_token_id=0, callbacks=[span]).train()
    return (span.end - span.start) / (args.steps - 1)


def main() -> None:
    args = parse_arguments()
    data = rows(args, args.steps * args.batch_size * 4).select(range(args.steps * args.batch_size))
    times: dict[str, list[float]] = {"bare loop": [], "recipe": []}
    for _ in range(args.repeats):
        for name, run in (("bare loop", bare_loop), ("recipe", recipe)):
            times[name].append(run(add_lora(base(args), r=args.r), data, args))
    table = Table(title=f"LoRA r {args.r}, {args.repeats} × {args.steps - 1} steps of {args.batch_size} rows")
    for name in ("", "s/step of every turn", "least", "× bare loop"):
        table.add_column(name, justify="right" if name else "left")
    for name, found in times.items():  # the fastest turns: others had to share the machine
        turns = ", ".join(f"{seconds:.3f}" for seconds in found)
        table.add_row(name, turns, f"{min(found):.3f}", f"{min(found) / min(times['bare loop']):.2f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()

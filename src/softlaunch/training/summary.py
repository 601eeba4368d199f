"""What is about to be trained, on one screen: the first thing to look at when a run is not what was meant."""

from collections import Counter
from collections.abc import Mapping, Sized
from typing import Any

from rich.table import Table
from rich.text import Text
from torch import nn
from transformers import SchedulerType, TrainerState

from softlaunch.arguments import TrainingArguments
from softlaunch.messages import say
from softlaunch.tuning import trainable_summary

_MAX_PLACES = 4
_QUANTIZED = {"uint8": "4 bit", "int8": "8 bit"}


def run_summary(
    model: nn.Module, args: TrainingArguments, state: TrainerState, train: Sized, validation: Sized | None
) -> Table:
    """A table to print: base, parameters, where the trained ones sit, rows, batch arithmetic, steps."""
    table = Table(show_header=False, title=say("Training"), title_justify="left", title_style="bold")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    sizes = trainable_summary(model)
    rows = say("{rows:,} to train on", rows=len(train))
    if validation is not None:
        rows += say(", {rows:,} to evaluate on", rows=len(validation))
    for name, value in (
        (say("base"), _base(model)),
        (say("parameters"), f"{sizes.total:,}"),
        (say("trained"), say("{number:,} ({share:.2%})", number=sizes.trainable, share=sizes.share)),
        (say("where"), _places_in_words(sizes.places)),
        (say("rows"), rows),
        (say("batch"), _batch(args)),
        (say("steps"), _steps(state, -(-len(train) // _rows_per_step(args)))),
        (say("learning rate"), _schedule(args, state)),
        (say("device"), args.device.type + (f", {args.mixed_precision}" if args.mixed_precision != "no" else "")),
        (say("output"), str(args.output_dir)),
    ):
        table.add_row(name, Text(value))
    return table


def _places_in_words(places: Mapping[str, int]) -> str:
    largest_first = sorted(places.items(), key=lambda place: -place[1])
    lines = [f"{name}: {number:,}" for name, number in largest_first[:_MAX_PLACES]]
    if len(places) > _MAX_PLACES:
        lines.append(say("and {number:,} more places", number=len(places) - _MAX_PLACES))
    return "\n".join(lines)


def _base(model: nn.Module) -> str:
    config: Any = model.config
    ((dtype, _),) = Counter(str(p.dtype).removeprefix("torch.") for p in model.parameters()).most_common(1)
    return f"{config.name_or_path} ({config.model_type}, {_QUANTIZED.get(dtype, dtype)})"


def _rows_per_step(args: TrainingArguments) -> int:
    return args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size


def _batch(args: TrainingArguments) -> str:
    return say(
        "{batch_size} per device × {accumulation} accumulated × {processes} processes = {rows} rows",
        batch_size=args.per_device_train_batch_size,
        accumulation=args.gradient_accumulation_steps,
        processes=args.world_size,
        rows=_rows_per_step(args),
    )


def _schedule(args: TrainingArguments, state: TrainerState) -> str:
    warmup = args.get_warmup_steps(state.max_steps)
    schedule = f"{args.learning_rate:g}, {SchedulerType(args.lr_scheduler_type).value}"
    return schedule + (say(", {steps:,} steps of warm-up", steps=warmup) if warmup else "")


def _steps(state: TrainerState, steps_per_epoch: int) -> str:
    epochs = state.max_steps / steps_per_epoch
    steps = say("{steps:,} = {epochs:.1f} epochs", steps=state.max_steps, epochs=epochs)
    if state.global_step:
        steps += say(", going on after step {step:,}", step=state.global_step)
    return steps

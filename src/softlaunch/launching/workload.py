"""What a run has to do, send and keep: steps, tokens, floating-point operations, communication and checkpoints."""

import math
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from softlaunch.errors import ArgumentError
from softlaunch.launching.activations import Precision
from softlaunch.launching.memory import model_states
from softlaunch.launching.settings import RunSettings
from softlaunch.launching.shape import ModelShape
from softlaunch.launching.strategy import Machines, Strategy
from softlaunch.launching.trainable import trainable_parameters

_FLOAT32 = 4
_STATE_BYTES = 200_000  # random states, scheduler and trainer_state.json of a checkpoint
_WHOLE_FILE_BYTES = 64 * 2**20  # larger files of rows are counted in their first part


@dataclass(frozen=True)
class Workload:
    """Of the training. None where the number of rows is not known; tokens are the most that the limits allow."""

    num_rows: int | None
    rows_per_step: int
    num_steps: int | None
    num_tokens: int | None
    flop_per_step: float  # of all processes
    sent_bytes_per_step: int  # by every process
    checkpoint_bytes: int
    num_checkpoints: int | None

    @property
    def disk_bytes(self) -> int:
        """With room for one more than are kept: the next one is written before the oldest goes."""
        return ((1 if self.num_checkpoints is None else self.num_checkpoints) + 1) * self.checkpoint_bytes


@contextmanager
def refusing_too_large() -> Iterator[None]:
    """Raises ArgumentError for numbers that a float cannot hold."""
    try:
        yield
    except OverflowError as error:
        raise ArgumentError(
            "the numbers of this run are too large to plan with ({error}): look at its sizes, epochs and batches",
            error=error,
        ) from None


@refusing_too_large()
def plan_workload(shape: ModelShape, settings: RunSettings, strategy: Strategy, machines: Machines) -> Workload:
    """Raises ArgumentError when a method lacks its size."""
    column = settings.text_column if settings.classifies else settings.prompt_column
    num_rows = count_rows(settings.train_file, column) if settings.train_file else None
    if num_rows is not None and settings.classifies and settings.do_eval and not settings.validation_file:
        num_rows -= round(num_rows * settings.validation_share)
    if num_rows is not None and settings.max_train_samples is not None:
        num_rows = min(num_rows, settings.max_train_samples)
    rows_per_step = settings.per_device_train_batch_size * settings.gradient_accumulation_steps * machines.num_processes
    num_steps = _num_steps(settings, machines, num_rows)
    tokens_per_step = rows_per_step * settings.row_tokens
    return Workload(
        num_rows=num_rows,
        rows_per_step=rows_per_step,
        num_steps=num_steps,
        num_tokens=None if num_steps is None else num_steps * tokens_per_step,
        flop_per_step=_flop_per_token(shape, settings) * tokens_per_step,
        sent_bytes_per_step=sent_bytes(shape, settings, strategy, machines),
        checkpoint_bytes=_saved_bytes(shape, settings, strategy, machines) + _STATE_BYTES * machines.num_processes,
        num_checkpoints=_num_checkpoints(settings, num_steps, num_rows, rows_per_step),
    )


def sent_bytes(shape: ModelShape, settings: RunSettings, strategy: Strategy, machines: Machines) -> int:
    """Sent by every process per optimizer step. An all-reduce of X bytes sends 2X(N-1)/N, a gather X(N-1)/N.

    ZeRO-3 and FSDP2 gather the weights for the forward and for the backward pass of every micro-batch, and ZeRO-3 a
    third time with checkpointing, where 2.5 to 2.7 times were counted.
    """
    others = (machines.num_processes - 1) / machines.num_processes
    gradients = trainable_parameters(shape, settings) * _FLOAT32
    if strategy.stage < 2:
        return int(2 * gradients * others)
    reductions = settings.gradient_accumulation_steps
    if strategy.stage == 2:
        return int((reductions + 1) * gradients * others)
    precision = Precision.of(settings, machines)
    alone = Strategy("alone", fsdp=strategy.fsdp)
    whole = model_states(shape, settings, alone, Machines(1, machines.gpus_per_node and 1), precision)
    gathers = 3 if settings.activation_checkpointing and not strategy.fsdp else 2
    return int(reductions * (gathers * (whole.weights + whole.trained) + gradients) * others)


def _saved_bytes(shape: ModelShape, settings: RunSettings, strategy: Strategy, machines: Machines) -> int:
    """A checkpoint's: what was trained in float32 and AdamW's two moments, and of a whole model the frozen rest.

    DeepSpeed adds its float32 copies, and, where the weights are not split, the model as it is computed with.
    """
    precision, trained = Precision.of(settings, machines), trainable_parameters(shape, settings)
    frozen = max(0, shape.parameters - trained) if {"full", "freeze"} & set(settings.methods) else 0
    saved = 3 * _FLOAT32 * trained + precision.weight_size * frozen
    if strategy.uses_deepspeed:
        saved += _FLOAT32 * trained
    if strategy.uses_deepspeed and not strategy.splits_weights:
        saved += precision.size * (trained + frozen)
    return saved


def _flop_per_token(shape: ModelShape, settings: RunSettings) -> float:
    """2 per number forward and for the input's gradient, 2 more for a trained weight's; recomputation 2 more.

    The output layer works at labels alone.
    """
    blocks = shape.num_layers * shape.matrix_parameters
    head = shape.vocab_size * shape.hidden_size * settings.label_tokens / settings.row_tokens
    passes = 6 if "full" in settings.methods else 4
    recomputed = 2 * blocks if settings.activation_checkpointing else 0
    attention = 2 * passes * shape.num_layers * shape.query_size * settings.row_tokens / 2
    return passes * (blocks + head) + recomputed + attention


def _num_steps(settings: RunSettings, machines: Machines, num_rows: int | None) -> int | None:
    """As Trainer counts them."""
    if settings.max_steps > 0:
        return settings.max_steps
    if num_rows is None:
        return None
    batches = math.ceil(num_rows / (settings.per_device_train_batch_size * machines.num_processes))
    return math.ceil(settings.num_train_epochs * math.ceil(batches / settings.gradient_accumulation_steps))


def _num_checkpoints(
    settings: RunSettings, num_steps: int | None, num_rows: int | None, rows_per_step: int
) -> int | None:
    if settings.save_strategy == "no":
        return 0
    if num_steps is None:
        return settings.save_total_limit
    if settings.save_strategy == "epoch":
        if not num_rows:
            return settings.save_total_limit
        number = max(1, round(num_steps * rows_per_step / num_rows))
    else:
        every = settings.save_steps if settings.save_steps >= 1 else max(1.0, num_steps * settings.save_steps)
        number = math.ceil(num_steps / every)
    return min(number, settings.save_total_limit or number)


def count_rows(path: str, column: str | int) -> int | None:
    """Rows of a data file by their look, without parsing them; None when there is no such file or no way to tell.
    Tables have a header if `column` is a name.

    Files over 64 MiB are counted in their first part and taken to go on like that.
    """
    file = Path(path)
    try:
        if not file.is_file() or file.stat().st_size == 0:
            return None
    except OSError:  # a name that is too long
        return None
    if file.suffix == ".parquet":
        return _parquet_rows(file)
    size = file.stat().st_size
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start = content[: min(size, _WHOLE_FILE_BYTES)]
    head = start[:1024].lstrip()
    if head.startswith(b"["):
        found = start.count(f'"{column}"'.encode())
    else:
        found = (
            start.count(b"\n")
            + (not start.endswith(b"\n"))
            - (file.suffix in (".csv", ".tsv") and isinstance(column, str))
        )
    return round(found * size / len(start))


def _parquet_rows(file: Path) -> int | None:
    from pyarrow import ArrowInvalid, parquet

    try:
        return parquet.read_metadata(file).num_rows
    except (ArrowInvalid, OSError):
        return None

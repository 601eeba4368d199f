"""What a run shows while it trains: a bar in a terminal, plain lines elsewhere; and how fast it is."""

import sys
import time
from collections.abc import Collection, Mapping
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback

from softlaunch.messages import clock, say
from softlaunch.training.summary import run_summary


class Throughput(TrainerCallback):
    """Counts this process's tokens, padding left out, and the seconds that training on them took.

    Evaluating, saving and answering prompts in between take no part.
    """

    def __init__(self) -> None:
        self.num_tokens: torch.Tensor | int = 0
        self.time_s = 0.0
        self.total_tokens = self.total_time_s = 0.0
        self._since = time.monotonic()

    def count(self, attention_mask: torch.Tensor) -> None:
        """Add a batch's tokens (mask: batch × length); nothing is waited for."""
        self.num_tokens = self.num_tokens + attention_mask.sum()

    def take(self, device: torch.device) -> torch.Tensor:
        """Float32 (2,): tokens of this process, and its seconds, since the last call."""
        taken = torch.tensor([float(self.num_tokens), self.time_s], device=device)
        self.num_tokens, self.time_s = 0, 0.0
        return taken

    def add(self, num_tokens: float, time_s: float) -> float:
        """Add what all processes took to the totals; returns their tokens per second."""
        self.total_tokens += num_tokens
        self.total_time_s += time_s
        return num_tokens / time_s if time_s else 0.0

    def totals(self) -> dict[str, float]:
        """Tokens per second up to the last log record, for `train_results.json`."""
        return {"train_tokens_per_second": self.total_tokens / self.total_time_s} if self.total_tokens else {}

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._since = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        now = time.monotonic()
        self.time_s += now - self._since
        self._since = now

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._since = time.monotonic()

    on_save = on_evaluate


class Display(TrainerCallback):
    """Shows steps, loss, learning rate, tokens/s and the time left; on the first process of all.

    In a terminal it is one bar that stays at the bottom, else a line for every log record; `disable_tqdm` makes it
    lines everywhere.
    """

    def __init__(self, validation: Any, *, lines: bool, console: Console | None = None):
        self.validation = validation
        self.console = console or Console()
        self.lines = lines or not self.console.is_terminal
        self.progress: Progress | None = None
        self.training: TaskID | None = None
        self.evaluating: TaskID | None = None
        self.is_training = False
        self.first_step, self.start = 0, 0.0

    def stop(self) -> None:
        """Leave the terminal as it was found; a run that ends with an error needs it too."""
        if self.progress is not None:
            self.progress.stop()
        self.progress = self.training = self.evaluating = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.is_training, self.start = True, 0.0
        if state.is_world_process_zero:
            rows = kwargs["train_dataloader"].dataset, self.validation
            self.console.print(run_summary(kwargs["model"], args, state, *rows))

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not state.is_world_process_zero or self.start:
            return
        self.first_step, self.start = state.global_step, time.monotonic()
        if not self.lines:
            steps = {"total": state.max_steps, "completed": state.global_step}
            self.training = self._bar().add_task(say("training"), **steps, shown="")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.progress is not None and self.training is not None:
            self.progress.update(self.training, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if not state.is_world_process_zero or not logs or "loss" not in logs:
            return
        shown = say("loss {loss}", loss=f"{logs['loss']:.4f}")
        if "tokens_per_second" in logs:  # a head that trains on features sees none
            shown += "  " + say("{speed} tokens/s", speed=f"{logs['tokens_per_second']:,.0f}")
        if self.progress is not None and self.training is not None:
            self.progress.update(self.training, shown=shown)
        elif self.lines:
            rate, left = f"{logs.get('learning_rate', 0):.2e}", self._time_left(state)
            self._line(state, say("{shown}  learning rate {rate}  {left} left", shown=shown, rate=rate, left=left))

    def on_prediction_step(self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **_: Any) -> None:
        if self.lines or not state.is_world_process_zero:
            return
        progress = self._bar()
        if self.evaluating is None:
            self.evaluating = progress.add_task(say("evaluating"), total=len(eval_dataloader), shown="")
        progress.advance(self.evaluating)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        if self.progress is not None and self.evaluating is not None:
            self.progress.remove_task(self.evaluating)
            self.evaluating = None
        if self.is_training:
            found = in_words(metrics or {}, "eval_", without=("runtime", "per_second", "epoch"))
            self._line(state, say("on held-out rows: {scores}", scores="  ".join(found)))
        else:
            self.stop()

    on_predict = on_evaluate  # Trainer calls it after `predict`, in place of that

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.is_training = False
        self.stop()

    def _bar(self) -> Progress:
        if self.progress is None:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[shown]}"),
                TimeRemainingColumn(),
            )
            self.progress = Progress(*columns, console=self.console, redirect_stderr=sys.stderr.isatty())
            self.progress.start()
        return self.progress

    def _line(self, state: Any, text: str) -> None:
        width = len(str(state.max_steps))
        step = say("step {step}/{steps}", step=f"{state.global_step:>{width}}", steps=state.max_steps)
        self.console.print(f"{step}  {text}", soft_wrap=True, highlight=False, markup=False)

    def _time_left(self, state: Any) -> str:
        per_step = (time.monotonic() - self.start) / max(state.global_step - self.first_step, 1)
        return clock((state.max_steps - state.global_step) * per_step)


def in_words(metrics: Mapping[str, Any], prefix: str, *, without: Collection[str] = ()) -> list[str]:
    """`name value` of each, names without `prefix`, numbers short; names that end as one of `without`, and values that
    are dictionaries, are left out."""
    kept = {name: v for name, v in metrics.items() if not (isinstance(v, dict) or name.endswith(tuple(without)))}
    shown = {name.removeprefix(prefix): v for name, v in kept.items()}
    return [f"{name} {_number(name, value)}" for name, value in shown.items()]


def _number(name: str, value: Any) -> str:
    if name.endswith("runtime"):
        return clock(value)
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)

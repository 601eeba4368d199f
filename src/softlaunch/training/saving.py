"""A Trainer whose checkpoints are whole or not there, and whose runs go on as if nothing had happened."""

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, cast
from unittest.mock import patch

import torch
from safetensors import SafetensorError
from transformers import Trainer, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput

from softlaunch import lifeline, preemption
from softlaunch.collective import any_process, wait_for_all
from softlaunch.errors import CheckpointError
from softlaunch.files import flush_tree
from softlaunch.messages import say
from softlaunch.training.checkpoint import INCOMPLETE, put_in_place, rotate
from softlaunch.training.manifest import read_manifest, write_manifest
from softlaunch.training.random_states import RandomStates
from softlaunch.training.run_state import read_run
from softlaunch.training.unpickling import tensors_only

logger = logging.getLogger(__name__)

_SHUTDOWN_TIMEOUT_S = 30  # the launcher's own
_TORCH_WRITE_ERRORS = ("inline_container", "PytorchStreamWriter", "iostream error", "Parent directory")


class ResumableTrainer(Trainer):
    """Writes checkpoints aside and puts them in place with a manifest; stops in good order when it is asked to.

    A checkpoint that cannot be written (a full disk) is reported and left out, and training goes on. When the run is
    asked to end (`softlaunch.preemption`), a checkpoint is saved after the step or in front of the evaluation that is
    under way, and `Preempted` is raised on all processes; the next start makes up for the evaluation.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.args.restore_callback_states_from_checkpoint = True  # how long early stopping has waited, say
        self._staging: Path | None = None
        self._write_errors: list[Exception] | None = None  # None: they are not noted, but raised
        self._resumed_from: str | None = None
        self._loaded_control: dict[str, Any] = {}
        self._owes_evaluation = False  # the checkpoint in the making, or the one that this run went on from
        self._last_step_of_epoch = -1
        self._warned_of_slow_saving = False
        self.add_callback(_Boundaries(self))

    @property
    def output_dir(self) -> Path:
        """The run's directory."""
        return Path(str(self.args.output_dir))

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As Trainer's; a signal that asks the run to end is acted upon between steps and evaluation batches."""
        with preemption.holding(), tensors_only():
            return super().train(*args, **kwargs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """As Trainer's; outside of training too, a signal is acted upon between its batches."""
        if self.is_in_train:
            return super().evaluation_loop(*args, **kwargs)
        with preemption.holding():
            found = super().evaluation_loop(*args, **kwargs)
            preemption.stop_if_agreed()
        return found

    def _init_training_state(
        self, max_steps: int, steps_per_epoch: int, num_train_epochs: int, resume_from_checkpoint: Any, trial: Any
    ) -> tuple[int, int]:
        if resume_from_checkpoint is not None:
            self._owes_evaluation = read_manifest(Path(resume_from_checkpoint)).get("owes_evaluation") is True
            self._resumed_from = resume_from_checkpoint
        epochs = super()._init_training_state(
            max_steps, steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        if resume_from_checkpoint is not None:
            self._find_best(Path(resume_from_checkpoint))
        return epochs

    def _find_best(self, checkpoint: Path) -> None:
        """The best one lies beside the one that this run goes on from, wherever both were when that was saved."""
        written = json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8")).get("best_model_checkpoint")
        if written is not None:
            beside = checkpoint.parent / Path(written).name
            self.state.best_model_checkpoint = str(beside) if beside.is_dir() else None

    def _load_callback_state(self) -> None:
        control: Any = cast(Any, self.state.stateful_callbacks).get("TrainerControl") or {}
        control = control[-1] if isinstance(control, list) else control
        self._loaded_control = dict(control.get("attributes") or control.get("args") or {})
        if self.state.global_step >= self.state.max_steps:  # it stopped at its last step, and may have more of them now
            self._loaded_control.pop("should_training_stop", None)
        super()._load_callback_state()

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if not self.control.should_training_stop:  # so it is in a run that goes on from its last step
            super()._run_epoch(*args, **kwargs)

    def _maybe_log_save_evaluate(
        self, tr_loss: Any, grad_norm: Any, model: Any, trial: Any, *args: Any, **kwargs: Any
    ) -> None:
        """As Trainer's, after every optimizer step and again after every epoch; here a run that is to end does so."""
        everything = partial(super()._maybe_log_save_evaluate, tr_loss, grad_norm, model, trial, *args, **kwargs)
        # After an epoch's last step it is called again in a moment, with what the epoch's end asks for
        step = self.state.global_step
        comes_again = float(self.state.epoch or 0).is_integer() and self._last_step_of_epoch != step
        self._last_step_of_epoch = step if comes_again else -1
        evaluates = self.control.should_evaluate
        if not comes_again and preemption.agreed():
            self.control.should_evaluate = self.control.should_save = False
            everything()
            self._save_and_leave(model, trial, owes_evaluation=evaluates)
        states = RandomStates() if evaluates else None
        try:
            everything()
        except preemption.Preempted:  # from within the evaluation
            if states is not None:
                states.restore()
            self._save_and_leave(model, trial, owes_evaluation=True)

    def _save_and_leave(self, model: Any, trial: Any, owes_evaluation: bool) -> NoReturn:
        self._owes_evaluation = owes_evaluation
        saved = self._save_whole_checkpoint(model, trial)
        preemption.leave(saved.name if saved else None)

    def catch_up(self) -> None:
        """Do what the step of the checkpoint that this run goes on from has left: its evaluation, or to stop there."""
        if self._owes_evaluation:
            self._owes_evaluation = False
            self._load_rng_state(self._resumed_from)
            self._last_step_of_epoch = self.state.global_step
            self.control.should_evaluate = self.control.should_save = True
            model = self.model_wrapped
            self._maybe_log_save_evaluate(torch.tensor(0.0), None, model, None, self.state.epoch, None, 0.0)
            self.control.should_evaluate = self.control.should_save = False
        if self._resumed_from is not None:
            self.control.should_training_stop |= self._was_last_step()

    def _was_last_step(self) -> bool:
        control: Any = self._loaded_control
        return self.state.global_step >= self.state.max_steps or control.get("should_training_stop") is True

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._staging is None else str(self._staging)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self._save_whole_checkpoint(model, trial)

    def _save_whole_checkpoint(self, model: Any, trial: Any) -> Path | None:
        """The checkpoint's folder, None when it could not be written; all processes call it."""
        place = self.output_dir / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        written = self.output_dir / INCOMPLETE / place.name
        best_before, self._write_errors, start = self.state.best_model_checkpoint, [], time.monotonic()
        lifeline.note(f"saving {place.name}")
        with self._noting_write_errors():
            written.mkdir(parents=True, exist_ok=True)
            if self.is_deepspeed_enabled:
                # DeepSpeed makes it on one process while the others wait for that one
                (written / f"global_step{self.model_wrapped.global_steps}").mkdir(exist_ok=True)
        if not self._any_write_error():
            with self._noting_write_errors(), self._writing_to(written.parent):
                super()._save_checkpoint(model, trial)
            self._name_best(place)
        saved = not self._any_write_error() and self._commit(written, place)
        if not saved:
            self.state.best_model_checkpoint = best_before
            if self.args.should_save:
                shutil.rmtree(written.parent, ignore_errors=True)
        self._write_errors = None
        self._warn_of_slow_saving(time.monotonic() - start)
        return place if saved else None

    def _warn_of_slow_saving(self, duration_s: float) -> None:
        limit_s = int(os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", _SHUTDOWN_TIMEOUT_S))
        if "TORCHELASTIC_RUN_ID" in os.environ and duration_s > limit_s / 2 and not self._warned_of_slow_saving:
            self._warned_of_slow_saving = True
            logger.warning(
                say(
                    "saving a checkpoint took {duration:.0f} s, and when the run is asked to end the launcher kills it "
                    "after {limit} s: set TORCH_ELASTIC_SHUTDOWN_TIMEOUT to more",
                    duration=duration_s,
                    limit=limit_s,
                )
            )

    def _commit(self, written: Path, place: Path) -> bool:
        """Flush, list and rename a checkpoint that every process has written its part of; whether that worked."""
        with self._noting_write_errors():
            if self.args.local_process_index == 0:
                flush_tree(written)
        if self._any_write_error():
            return False
        run = read_run(self.output_dir)
        with self._noting_write_errors():
            if self.args.should_save:
                facts = {"step": self.state.global_step, "world_size": self.args.world_size, "run_id": run.get("id")}
                facts |= {"only_model": self.args.save_only_model}
                write_manifest(written, {**facts, "owes_evaluation": self._owes_evaluation, "run": run})
                put_in_place(written, place)
        if self._any_write_error():
            return False
        if self.args.should_save:
            best, limit = self.state.best_model_checkpoint, self.args.save_total_limit
            rotate(self.output_dir, place, run, limit=limit, best=best)
        wait_for_all()
        return True

    def _name_best(self, place: Path) -> None:
        """Trainer looks for the best checkpoint beside the one that it writes."""
        if self.state.best_global_step is None:
            return
        best = self.output_dir / f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
        if best != place and not best.exists():
            return
        self.state.best_model_checkpoint = str(best)
        with self._noting_write_errors():
            if self.args.should_save:
                self.state.save_to_json(str(self.output_dir / INCOMPLETE / place.name / TRAINER_STATE_NAME))

    @contextmanager
    def _writing_to(self, staging: Path) -> Iterator[None]:
        """Inside, Trainer writes into `staging`, and no failed write makes a process miss what the others wait for."""
        engine: Any = self.model_wrapped if self.is_deepspeed_enabled else None
        self._staging, save = staging, torch.save
        try:
            # Optimizer, scheduler, random states and DeepSpeed's parts are all written by this one function
            with patch("torch.save", self._noting(save)):
                if engine is not None:
                    engine.save_checkpoint = partial(engine.save_checkpoint, save_latest=False)
                yield
        finally:
            self._staging = None
            if engine is not None:
                del engine.save_checkpoint
        if engine is not None and self.args.should_save:
            (staging / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}" / "latest").write_text(
                f"global_step{engine.global_steps}"
            )

    def _noting(self, write: Callable) -> Callable:
        def noting(*args: Any, **kwargs: Any) -> Any:
            with self._noting_write_errors():
                return write(*args, **kwargs)

        return noting

    @contextmanager
    def _noting_write_errors(self) -> Iterator[None]:
        """Other errors pass."""
        try:
            yield
        except (OSError, SafetensorError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not any(words in str(error) for words in _TORCH_WRITE_ERRORS):
                raise
            if self._write_errors is None:
                raise
            self._write_errors.append(error)

    def _any_write_error(self) -> bool:
        """Whether any process noted one; each says its own."""
        if self._write_errors:
            error = self._write_errors[0]
            logger.error(
                say(
                    "checkpoint {step} could not be saved on process {rank}, with {free:,} MB free on the disk: "
                    "{error}. Training goes on; the checkpoint before it stays",
                    step=self.state.global_step,
                    rank=self.args.process_index,
                    free=shutil.disk_usage(self.output_dir).free // 1_000_000,
                    error=error,
                )
            )
        failed = any_process(bool(self._write_errors))
        self._write_errors = []
        return failed

    def save_result(self, name: str, save: Callable[[str], None]) -> None:
        """Let `save` write what was trained, and make it the folder `name` of the run's directory: whole or not at all.

        All processes call it. Raises CheckpointError when it cannot be written.
        """
        written, place = self.output_dir / INCOMPLETE / name, self.output_dir / name
        lifeline.note(f"saving {name}")
        errors: list[Exception] = []
        self._write_errors = errors
        with self._noting_write_errors():
            save(str(written))  # it may note an error itself, and return
            if self.args.should_save:
                flush_tree(written)
        if self.args.should_save:
            with self._noting_write_errors():
                if not errors:
                    put_in_place(written, place)
            shutil.rmtree(written.parent, ignore_errors=True)
        self._write_errors, error = None, next(iter(errors), None)
        if any_process(error is not None):
            raise CheckpointError(
                "{place} could not be written: {error}. Make room and start the run again: it goes on from its last "
                "checkpoint",
                place=place,
                error=error or "-",
            )


class _Boundaries(TrainerCallback):
    """Where Trainer calls back: the moments at which all processes can stop, and the first one of a resumed run."""

    def __init__(self, trainer: ResumableTrainer):
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        lifeline.note(f"step {state.global_step} of {state.max_steps} done")

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.trainer.catch_up()

    def on_prediction_step(self, *_: Any, **__: Any) -> None:
        preemption.stop_if_agreed()

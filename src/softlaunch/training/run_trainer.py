"""What every Trainer here does: the order of rows, the files of a run, and what a checkpoint holds."""

from collections.abc import Callable
from typing import Any, cast

import datasets
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import Sampler
from transformers import PreTrainedModel, PrinterCallback, ProgressCallback
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.integrations.deepspeed import deepspeed_init
from transformers.trainer_utils import EvalLoopOutput

from softlaunch import preemption
from softlaunch.arguments import TrainingArguments
from softlaunch.data.order import LengthGroupedSampler
from softlaunch.run_directory import METRICS_FILE
from softlaunch.training.callbacks import MetricsFile
from softlaunch.training.checkpoint import checkpoint_to_resume, trained_tensors
from softlaunch.training.guard import Guard
from softlaunch.training.memory import peak_memory_gib
from softlaunch.training.progress import Display, Throughput, in_words
from softlaunch.training.results import write_results
from softlaunch.training.run_state import finish_run, read_run
from softlaunch.training.saving import ResumableTrainer
from softlaunch.tuning import trainable_summary


class RunTrainer(ResumableTrainer):
    """Trains on rows with `input_ids` in the directory of a run; what the loss is, its children say.

    `save_whole` writes the result of training that is no adapter: it is called on the first process with the directory
    `model/` and all tensors.
    """

    def __init__(self, *, save_whole: Callable[[str, dict[str, torch.Tensor]], None] | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.save_whole = save_whole
        arguments = cast(TrainingArguments, self.args)
        begins_anew = arguments.restart and arguments.do_train
        self.add_callback(MetricsFile(self.output_dir / METRICS_FILE, restart=begins_anew))
        self.guard, self.throughput = Guard(self.args), Throughput()
        self.add_callback(self.guard)
        self.add_callback(self.throughput)
        for shown_twice in (PrinterCallback, ProgressCallback):
            self.remove_callback(shown_twice)
        self.display = Display(self.eval_dataset, lines=bool(self.args.disable_tqdm))
        self.callback_handler.callbacks.insert(0, self.display)  # others print too when training begins and ends

    def run_training(self) -> None:
        """Train, from the newest checkpoint on if there is one; leave the metrics and `adapter/`, or else `model/`, in
        `output_dir`.
        """
        arguments = cast(TrainingArguments, self.args)
        with preemption.holding():
            self._train_and_save(arguments)
            preemption.stop_if_agreed()

    def _train_and_save(self, arguments: TrainingArguments) -> None:
        summary = trainable_summary(cast(nn.Module, self.model))
        run_id = read_run(self.output_dir).get("id")
        try:
            result = self.train(resume_from_checkpoint=checkpoint_to_resume(arguments, run_id))
        finally:
            self.display.stop()
        if self.save_whole is None:
            self.save_result("adapter", self.save_model)
        else:
            self.save_result("model", self._save_whole_model)
        counts = {"trainable_parameters": summary.trainable, "parameters": summary.total}
        memory = round(peak_memory_gib(), 3)
        self.report("train", {**result.metrics, **self.throughput.totals(), **counts, "peak_memory_gib": memory})
        if self.is_world_process_zero():
            finish_run(self.output_dir)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As Trainer's, with the speed since the last record in those of training; all processes call it."""
        if "loss" in logs:
            tokens, seconds = self.accelerator.reduce(self.throughput.take(self.args.device), reduction="sum").tolist()
            speed = self.throughput.add(tokens, seconds / self.args.world_size)
            logs |= {"tokens_per_second": round(speed, 1)} if tokens else {}
        super().log(logs, start_time)

    def report(self, step: str, metrics: dict[str, Any]) -> None:
        """Print the metrics of one step of the run (train, eval, predict) and write `<step>_results.json`."""
        if self.is_world_process_zero():
            write_results(self.output_dir, step, metrics)
            text = ", ".join(in_words(metrics, f"{step}_"))
            self.display.console.print(f"{step}_results.json: {text}", soft_wrap=True, highlight=False, markup=False)

    def row_lengths(self, rows: Any) -> list[int]:
        """Tokens of every row."""
        return [len(ids) for ids in rows["input_ids"]]

    def _get_train_sampler(self, train_dataset: datasets.Dataset | None = None) -> Sampler:
        train_dataset = train_dataset or self.train_dataset
        rows_per_update = self._train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        self._order = LengthGroupedSampler(
            self.row_lengths(train_dataset), rows_per_update, self.args.data_seed or self.args.seed
        )
        return self._order

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # Where the first batches of an epoch are skipped, Accelerate does not tell the sampler which epoch it is
        self._order.set_epoch(kwargs["epoch"])
        super()._run_epoch(*args, **kwargs)

    def _get_eval_sampler(self, eval_dataset: datasets.Dataset) -> Any:
        lengths = self.row_lengths(eval_dataset)
        return sorted(range(len(lengths)), key=lambda row: -lengths[row])

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """As Trainer's, but possible under ZeRO-1, ZeRO-2 and FSDP2 before any training: there is nothing to split."""
        self.model_for_generation()
        before = self.is_deepspeed_enabled, self.is_fsdp_enabled
        if not self._is_split:
            self.is_deepspeed_enabled = self.is_fsdp_enabled = False
        try:
            return super().evaluation_loop(*args, **kwargs)
        finally:
            self.is_deepspeed_enabled, self.is_fsdp_enabled = before

    def model_for_generation(self) -> PreTrainedModel:
        """The model where it can generate, in a run that has not trained too; all processes call it.

        ZeRO-3 splits the base while it is loaded, so its engine is needed to put it together. The others split
        nothing before training begins: without it every process has the whole model, on its device.
        """
        if is_deepspeed_zero3_enabled() and self.deepspeed is None:
            deepspeed_init(self, num_training_steps=0, inference=True)
            self.deepspeed = self.model_wrapped = self.accelerator.prepare(self.model)
        elif (self.is_deepspeed_enabled or self.is_fsdp_enabled) and not self._is_split:
            cast(nn.Module, self.model).to(self.args.device)
        return cast(PreTrainedModel, self.accelerator.unwrap_model(self.model))

    @property
    def _is_split(self) -> bool:
        """Whether DeepSpeed or FSDP2 has the model in its hands."""
        return self.deepspeed is not None or isinstance(self.model, FSDPModule)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Put together what was trained, which takes all processes, and save it on the first.

        Trainer would gather the frozen base with it, or copy it, and under DeepSpeed in half precision it would save
        the rounded parameters; here they are the float32 ones that the optimizer steps.
        """
        tensors = self._tensors_to_save()
        with self._noting_write_errors():
            self._save(output_dir, tensors)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save_whole_model(self, directory: str) -> None:
        tensors = self._tensors_to_save()
        if self.args.should_save:
            cast(Callable, self.save_whole)(directory, tensors)

    def _tensors_to_save(self) -> dict[str, torch.Tensor]:
        model, in_deepspeed = cast(nn.Module, self.model), self.deepspeed is not None
        return trained_tensors(model, in_deepspeed=in_deepspeed, keep=self.args.should_save)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """Save what was trained and nothing else: no tokenizer, no pickled arguments."""
        if self.args.should_save:
            cast(PreTrainedModel, self.model).save_pretrained(
                output_dir or str(self.args.output_dir), state_dict=state_dict
            )

"""The one Trainer subclass: what the loss is, in which order rows come, and what a checkpoint holds."""

import logging
from collections.abc import Callable
from typing import Any, cast

import datasets
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import Sampler
from transformers import EvalPrediction, PreTrainedModel, PrinterCallback
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.integrations.deepspeed import deepspeed_init
from transformers.trainer_utils import EvalLoopOutput

from softlaunch.arguments import TrainingArguments
from softlaunch.data.collate import TrainingCollator
from softlaunch.data.encode import IGNORED_LABEL
from softlaunch.data.order import LengthGroupedSampler
from softlaunch.messages import say
from softlaunch.training.callbacks import MetricsFile
from softlaunch.training.checkpoint import checkpoint_to_resume, trained_tensors
from softlaunch.training.finite import NonFiniteGradients, stop_if_not_finite
from softlaunch.training.label_logits import LogitsAtLabels
from softlaunch.training.results import write_results
from softlaunch.training.run_state import finish_run, read_run
from softlaunch.training.saving import ResumableTrainer
from softlaunch.tuning import trainable_summary

logger = logging.getLogger(__name__)

AnswerScores = Callable[[nn.Module], dict[str, float]]


class CausalTrainer(ResumableTrainer):
    """Trains on (prompt, answer) rows with `input_ids`, `labels` and `row_id`.

    Loss: the sum of the label tokens' negative log-likelihoods divided by their number, over all processes and
    accumulation steps; `eval_loss` likewise over the whole validation set. `answer_scores`, when given, is called in
    every evaluation and adds scores of generated answers. `save_whole` writes the result of training that is no
    adapter: it is called on the first process with the directory `model/` and all tensors.

    It derives from Trainer, not from Seq2SeqTrainer, whose evaluation counts rows twice when processes do not divide
    them; all that Seq2SeqTrainer adds is generation, which is `evaluation.predict` here.
    """

    def __init__(
        self,
        *,
        pad_token_id: int,
        answer_scores: AnswerScores | None = None,
        save_whole: Callable[[str, dict[str, torch.Tensor]], None] | None = None,
        **kwargs: Any,
    ):
        super().__init__(data_collator=TrainingCollator(pad_token_id), compute_metrics=self._scores, **kwargs)
        self.answer_scores, self.save_whole = answer_scores, save_whole
        self._label_logits = LogitsAtLabels(cast(PreTrainedModel, self.model))
        arguments = cast(TrainingArguments, self.args)
        begins_anew = arguments.restart and arguments.do_train
        self.add_callback(MetricsFile(self.output_dir / "metrics.jsonl", restart=begins_anew))
        self.add_callback(NonFiniteGradients(self.args.fp16))
        if not self.is_world_process_zero():
            self.remove_callback(PrinterCallback)  # it prints on the first process of every node

    def run_training(self) -> None:
        """Train, from the newest checkpoint on if there is one; leave the metrics and `adapter/`, or else `model/`, in
        `output_dir`.
        """
        arguments = cast(TrainingArguments, self.args)
        summary = trainable_summary(cast(nn.Module, self.model))
        places = ", ".join(f"{place} {size:,}" for place, size in summary.places.items())
        logger.info(
            say(
                "{trainable:,} of {total:,} parameters are trained ({share:.3%}): {places}",
                trainable=summary.trainable,
                total=summary.total,
                share=summary.share,
                places=places,
            )
        )
        run_id = read_run(self.output_dir).get("id")
        result = self.train(resume_from_checkpoint=checkpoint_to_resume(arguments, run_id))
        if self.save_whole is None:
            self.save_result("adapter", self.save_model)
        else:
            self.save_result("model", self._save_whole)
        counts = {"trainable_parameters": summary.trainable, "parameters": summary.total}
        self.report("train", {**result.metrics, **counts})
        if self.is_world_process_zero():
            finish_run(self.output_dir)

    def report(self, step: str, metrics: dict[str, Any]) -> None:
        """Print the metrics of one step of the run (train, eval, predict) and write `<step>_results.json`."""
        if self.is_world_process_zero():
            self.log_metrics(step, metrics)
            write_results(self.output_dir, step, metrics)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The loss as described above, scaled as Trainer expects it: processes average their gradients."""
        nll, _ = self._token_losses(model, inputs)
        loss = nll.sum() / (len(nll) if num_items_in_batch is None else num_items_in_batch)
        stop_if_not_finite(loss, inputs.get("row_id"), self.state.global_step)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes
        return (loss, {"nll": nll}) if return_outputs else loss

    def _token_losses(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Of every label token of the batch its negative log-likelihood, float32, and its row; both (label tokens,)."""
        targets = inputs["labels"][:, 1:]
        kept = targets != IGNORED_LABEL
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        with self._label_logits.at(nn.functional.pad(kept, (0, 1))):
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        return nn.functional.cross_entropy(logits.float(), targets[kept], reduction="none"), kept.nonzero()[:, 0]

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *_: Any, **__: Any) -> tuple:
        """What evaluation needs of a batch: the rows' losses and token counts, in place of logits and labels."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            nll, rows = self._token_losses(model, inputs)
        num_rows = len(inputs["labels"])
        return None, nll.new_zeros(num_rows).index_add(0, rows, nll), rows.bincount(minlength=num_rows)

    def _scores(self, prediction: EvalPrediction) -> dict[str, float]:
        nll, num_tokens = cast(Any, prediction.predictions), cast(Any, prediction.label_ids)
        scores = {"loss": float(nll.sum() / num_tokens.sum())}
        if self.answer_scores is not None:
            scores |= self.answer_scores(self.accelerator.unwrap_model(self.model))
        return scores

    def _get_train_sampler(self, train_dataset: datasets.Dataset | None = None) -> Sampler:
        train_dataset = train_dataset or self.train_dataset
        rows_per_update = self._train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return LengthGroupedSampler(_lengths(train_dataset), rows_per_update, self.args.data_seed or self.args.seed)

    def _get_eval_sampler(self, eval_dataset: datasets.Dataset) -> Any:
        lengths = _lengths(eval_dataset)
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
        self._save(output_dir, self._tensors_to_save())
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save_whole(self, directory: str) -> None:
        tensors = self._tensors_to_save()
        if self.args.should_save:
            assert self.save_whole is not None
            self.save_whole(directory, tensors)

    def _tensors_to_save(self) -> dict[str, torch.Tensor]:
        model, in_deepspeed = cast(nn.Module, self.model), self.deepspeed is not None
        return trained_tensors(model, in_deepspeed=in_deepspeed, keep=self.args.should_save)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """Save what was trained and nothing else: no tokenizer, no pickled arguments."""
        if self.args.should_save:
            with self._noting_write_errors():
                cast(PreTrainedModel, self.model).save_pretrained(
                    output_dir or str(self.args.output_dir), state_dict=state_dict
                )


def _lengths(dataset: datasets.Dataset) -> list[int]:
    return [len(ids) for ids in dataset["input_ids"]]

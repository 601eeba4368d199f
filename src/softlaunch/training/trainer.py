"""Training on prompts and answers: what the loss is, and what evaluation needs of it."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn
from transformers import EvalPrediction, PreTrainedModel

from softlaunch.data.collate import TrainingCollator
from softlaunch.data.encode import IGNORED_LABEL
from softlaunch.training.diagnosis import Batch
from softlaunch.training.label_logits import LogitsAtLabels
from softlaunch.training.run_trainer import RunTrainer

AnswerScores = Callable[[nn.Module], dict[str, float]]


class CausalTrainer(RunTrainer):
    """Trains on (prompt, answer) rows with `input_ids`, `labels` and `row_id`.

    Loss: the sum of the label tokens' negative log-likelihoods divided by their number, over all processes and
    accumulation steps; `eval_loss` likewise over the whole validation set. `answer_scores`, when given, is called in
    every evaluation and adds scores of generated answers.

    It derives from Trainer, not from Seq2SeqTrainer, whose evaluation counts rows twice when processes do not divide
    them; all that Seq2SeqTrainer adds is generation, which is `evaluation.predict` here.
    """

    def __init__(self, *, pad_token_id: int, answer_scores: AnswerScores | None = None, **kwargs: Any):
        super().__init__(data_collator=TrainingCollator(pad_token_id), compute_metrics=self._scores, **kwargs)
        self.answer_scores = answer_scores
        self._label_logits = LogitsAtLabels(cast(PreTrainedModel, self.model))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The loss as described above, scaled as Trainer expects it: processes average their gradients."""
        nll, rows = self._token_losses(model, inputs)
        num_labels = len(nll) if num_items_in_batch is None else num_items_in_batch
        loss = nll.sum() / num_labels
        batch = Batch(nll, rows, inputs.get("row_id"), num_labels)
        self.guard.check_loss(loss, batch, cast(nn.Module, self.model), self.state.global_step)
        self.throughput.count(inputs["attention_mask"])
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

"""Training on texts and their classes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
import torch
from torch import nn
from transformers import EarlyStoppingCallback, EvalPrediction, PreTrainedTokenizerBase

from softlaunch.arguments import Arguments
from softlaunch.training.diagnosis import Batch
from softlaunch.training.features import ClassCollator, FeatureRows
from softlaunch.training.run_trainer import RunTrainer
from softlaunch.tuning.classifier import WHOLE_MODELS, ClassifierSettings, save_classifier

Scores = Callable[[np.ndarray, np.ndarray], dict[str, float]]


class ClassifierTrainer(RunTrainer):
    """Trains on rows with `input_ids`, `attention_mask`, `labels` and `row_id`.

    Loss: the rows' negative log-likelihoods, times `class_weights` (classes,) where given, summed and divided by the
    number of rows over all processes and accumulation steps. `scores` makes the metrics of an evaluation from logits
    (rows, classes) and labels (rows,).
    """

    def __init__(
        self,
        *,
        tokenizer: PreTrainedTokenizerBase,
        settings: ClassifierSettings,
        scores: Scores,
        class_weights: torch.Tensor | None = None,
        **kwargs: Any,
    ):
        super().__init__(
            data_collator=ClassCollator(tokenizer),
            compute_metrics=self._scores,
            save_whole=self._save_whole if settings.method in WHOLE_MODELS else None,
            **kwargs,
        )
        self.tokenizer, self.settings, self.scores = tokenizer, settings, scores
        self.class_weights = class_weights
        self.model_accepts_loss_kwargs = True  # the loss is a share of the whole step already, whatever the model says

    def predict_rows(self, rows: datasets.Dataset | FeatureRows, step: str) -> tuple[np.ndarray, dict[str, float]]:
        """Logits (rows, classes) in the order of `rows`, and the metrics `<step>_…`; all processes call it."""
        result = self.predict(cast(Any, rows), metric_key_prefix=step)
        by_id = dict(zip(cast(Any, result.label_ids)[:, 1].tolist(), cast(Any, result.predictions), strict=True))
        row_ids = rows.row_ids.tolist() if isinstance(rows, FeatureRows) else rows["row_id"][:]
        return np.stack([by_id[row_id] for row_id in row_ids]), dict(result.metrics or {})

    def report(self, step: str, metrics: dict[str, Any]) -> None:
        """As RunTrainer's; training also names the best checkpoint and its score, by metric_for_best_model."""
        if step == "train" and self.state.best_model_checkpoint:
            name = Path(self.state.best_model_checkpoint).name
            metrics = {**metrics, "best_checkpoint": name, "best_metric": self.state.best_metric}
        super().report(step, metrics)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The loss as described above, scaled as Trainer expects it: processes average their gradients."""
        logits, losses = self._row_losses(model, inputs)
        num_rows = len(losses) if num_items_in_batch is None else num_items_in_batch
        loss = losses.sum() / num_rows
        batch = Batch(losses, torch.arange(len(losses), device=losses.device), inputs.get("row_id"), num_rows)
        self.guard.check_loss(loss, batch, cast(nn.Module, self.model), self.state.global_step)
        if "attention_mask" in inputs:  # a frozen encoder's features have none
            self.throughput.count(inputs["attention_mask"])
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes
        return (loss, {"logits": logits}) if return_outputs else loss

    def _row_losses(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (rows, classes) and losses (rows,), both float32."""
        features = {name: tensor for name, tensor in inputs.items() if name not in ("labels", "row_id")}
        logits = model(**features).logits.float()
        return logits, self._losses(logits, inputs["labels"])

    def _losses(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        losses = nn.functional.cross_entropy(logits, labels, ignore_index=-1, reduction="none")
        return losses if self.class_weights is None else losses * self.class_weights.to(losses.device)[labels]

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *_: Any, **__: Any) -> tuple:
        """Logits, and beside the labels the row ids, by which the rows come back into their order."""
        prepared: dict[str, Any] = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            logits = self._row_losses(model, prepared)[0]
        return None, logits, torch.stack([prepared["labels"], prepared["row_id"]], dim=1)

    def _scores(self, prediction: EvalPrediction) -> dict[str, float]:
        logits, labels = torch.tensor(prediction.predictions), torch.tensor(cast(Any, prediction.label_ids)[:, 0])
        if (labels < 0).any():  # rows to predict, whose classes nobody knows
            return {}
        loss = self._losses(logits, labels).mean().item()
        return {"loss": loss, **self.scores(logits.numpy(), labels.numpy())}

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor:
        """Rows of all accumulation steps and processes."""
        rows = torch.tensor(sum(len(batch["labels"]) for batch in batch_samples), device=device)
        shared = self.args.world_size > 1 and self.args.average_tokens_across_devices
        return self.accelerator.gather(rows).sum() if shared else rows

    def row_lengths(self, rows: Any) -> list[int]:
        """Tokens of every row; features of a frozen encoder are all alike."""
        return [1] * len(rows) if isinstance(rows, FeatureRows) else super().row_lengths(rows)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        if self.args.should_save:
            save_classifier(self.model, self.settings, output_dir or str(self.args.output_dir), state_dict)

    def _save_whole(self, directory: str, tensors: dict[str, torch.Tensor]) -> None:
        save_classifier(self.model, self.settings, directory, tensors)
        self.tokenizer.save_pretrained(directory)


def balanced_weights(labels: Sequence[int], num_classes: int) -> torch.Tensor:
    """rows / (classes × rows of the class) for every class, float32: the mean over all rows is 1."""
    counts = torch.bincount(torch.tensor(labels), minlength=num_classes).clamp(min=1)
    return len(labels) / (num_classes * counts.float())


def stop_early(arguments: Arguments) -> list[EarlyStoppingCallback]:
    """The callback that `early_stopping_patience` asks for, if it does."""
    patience, threshold = (
        arguments.classification.early_stopping_patience,
        arguments.classification.early_stopping_threshold,
    )
    return [] if patience is None else [EarlyStoppingCallback(patience, threshold)]

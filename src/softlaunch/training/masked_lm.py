"""Masked language modelling (BERT; Devlin et al., 2019) with logits at the masked positions alone."""

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from softlaunch.data.encode import IGNORED_LABEL
from softlaunch.training.label_logits import LogitsAtLabels
from softlaunch.training.saving import ResumableTrainer


class MaskedLanguageTrainer(ResumableTrainer):
    """The loss is the mean over all masked tokens, of all processes and accumulation steps.

    About one token in six is masked, so a head that sees all of them would spend most of its work on nothing: for a
    small encoder with a vocabulary of 21k that is half of a step.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self._label_logits = LogitsAtLabels(cast(PreTrainedModel, self.model))
        self.model_accepts_loss_kwargs = True  # compute_loss divides by the masked tokens of the whole step

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Negative log-likelihood of the masked tokens, a float32 scalar, scaled as Trainer expects it."""
        labels = inputs["labels"]
        kept = labels != IGNORED_LABEL
        with self._label_logits.at(kept):
            logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        nll = nn.functional.cross_entropy(logits.float(), labels[kept], reduction="sum")
        if num_items_in_batch is None:
            loss = nll / kept.sum().clamp(min=1)
        else:
            loss = nll / num_items_in_batch
            if self.args.average_tokens_across_devices:
                loss = loss * self.accelerator.num_processes
        return (loss, {"nll": nll}) if return_outputs else loss


def begin_with_frequencies(model: PreTrainedModel, rows: Iterable[list[int]]) -> None:
    """Set the bias of a new model's head to the logarithm of how frequent each token is in `rows` of token ids.

    Each step moves a bias by no more than the learning rate: a short run would spend its steps on these.
    """
    bias = cast(Any, model.get_output_embeddings()).bias
    counts = torch.bincount(torch.tensor([token for row in rows for token in row]), minlength=len(bias)) + 0.5
    with torch.no_grad():
        bias.copy_((counts / counts.sum()).log())

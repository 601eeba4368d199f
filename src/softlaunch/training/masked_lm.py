"""Masked language modelling (BERT; Devlin et al., 2019) with logits at the masked positions alone."""

from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel, Trainer

from softlaunch.data.encode import IGNORED_LABEL
from softlaunch.training.label_logits import LogitsAtLabels


class MaskedLanguageTrainer(Trainer):
    """Trainer whose loss is the mean over all masked tokens, of all processes and accumulation steps.

    About one token in six is masked, so a head that sees all of them would spend most of its work on nothing: for a
    small encoder with a vocabulary of 21k that is half of a step.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self._label_logits = LogitsAtLabels(cast(PreTrainedModel, self.model))

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

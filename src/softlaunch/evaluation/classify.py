"""A trained classifier in one call.

from softlaunch.evaluation.classify import load_classifier

classify = load_classifier("output/my_run")
classify("国足今晚出战亚洲杯")        # Prediction(label="体育", probability=0.98, probabilities={…})
classify(["…", "…"])                 # a list of them
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast, overload

import torch
from transformers import PreTrainedTokenizerBase

from softlaunch.data.check import is_unicode
from softlaunch.data.classification import encode_texts
from softlaunch.errors import CheckpointError, DataError
from softlaunch.models.encoder import load_encoder, load_text_tokenizer
from softlaunch.tuning.classifier import WHOLE_MODELS, find_classifier, load_trained, read_settings

Text = str | tuple[str, str]  # a text, or a pair of texts where the classifier was trained on pairs


@dataclass(frozen=True)
class Prediction:
    """The likeliest class, its probability, and the probability of every class."""

    label: str
    probability: float
    probabilities: dict[str, float]


class TextClassifier:
    """A model with its tokenizer and its classes; call it with a text or with a list of texts."""

    def __init__(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, classes: Sequence[str], *, max_length: int, pairs: bool
    ):
        self.model, self.tokenizer, self.classes = model.eval(), tokenizer, list(classes)
        self.max_length, self.pairs = max_length, pairs

    @overload
    def __call__(self, texts: Text) -> Prediction: ...
    @overload
    def __call__(self, texts: list[Text]) -> list[Prediction]: ...
    def __call__(self, texts: Text | list[Text]) -> Prediction | list[Prediction]:
        """The prediction of a text, or those of a list of texts in its order.

        Raises DataError for an empty text, and for single texts where pairs were learnt or the other way round.
        """
        if isinstance(texts, list):
            return list(self.stream(texts))
        return next(self.stream([texts]))

    def stream(self, texts: Iterable[Text], batch_size: int = 64) -> Iterator[Prediction]:
        """The predictions one after the other, computed `batch_size` at a time."""
        remaining = iter(texts)
        while batch := list(islice(remaining, batch_size)):
            yield from self._predict([self.checked(text) for text in batch])

    def checked(self, text: Text) -> tuple[str, str | None]:
        """A text and the one that it is paired with, if any. Raises DataError for what cannot be classified."""
        first, second = text if isinstance(text, tuple) else (text, None)
        if (second is not None) != self.pairs:
            if self.pairs:
                raise DataError("this classifier was trained on pairs of texts: give (text, second text)")
            raise DataError("this classifier was trained on single texts, not on pairs")
        if not first.strip() or (second is not None and not second.strip()):
            raise DataError("a text is empty: there is nothing to classify")
        if not is_unicode(first + (second or "")):
            raise DataError("a text holds bytes or half characters that are no text")
        return first, second

    @torch.no_grad()
    def _predict(self, texts: Sequence[tuple[str, str | None]]) -> Iterator[Prediction]:
        encoded = encode_texts(self.tokenizer, [t for t, _ in texts], [p for _, p in texts], self.max_length)
        longest = max(len(ids) for ids in encoded["input_ids"])
        pads = {"input_ids": self.tokenizer.pad_token_id, "token_type_ids": self.tokenizer.pad_token_type_id}
        inputs = {
            name: torch.tensor([[*ids, *[pads.get(name, 0)] * (longest - len(ids))] for ids in rows])
            for name, rows in encoded.items()
        }
        device = self.model.device
        logits = self.model(**{name: tensor.to(device) for name, tensor in inputs.items()}).logits
        for shares in logits.double().softmax(-1).tolist():
            best = max(range(len(shares)), key=shares.__getitem__)
            yield Prediction(self.classes[best], shares[best], dict(zip(self.classes, shares, strict=True)))


def load_classifier(
    run: str | Path, *, base: str | None = None, device: str | torch.device | None = None
) -> TextClassifier:
    """What a run of recipes/classify.py left in its output directory (or in a checkpoint of it), ready to use.

    `base`: where the base model is, if not where it was when the run was trained. `device`: a GPU if there is one.
    Raises CheckpointError when there is no classifier, or its base is missing or another one.
    """
    directory = find_classifier(run)
    found = directory and read_settings(directory)
    if directory is None or not found:
        raise CheckpointError(
            "{path}: there is no trained classifier here, in adapter/ or in model/; give the output_dir of a run of "
            "recipes/classify.py",
            path=run,
        )
    settings, classes = found
    whole = settings.method in WHOLE_MODELS
    path = str(directory) if whole else base or settings.base
    has_tokenizer = whole and (directory / "tokenizer_config.json").is_file()
    try:
        tokenizer = load_text_tokenizer(path if has_tokenizer else base or settings.base, settings.max_length)
        encoder = load_encoder(path, classes, must_be_trained=whole, will_be_loaded=not whole)
    except CheckpointError as error:
        if base is not None or Path(settings.base).exists():
            raise
        raise CheckpointError(
            "{error}\nThe base model of this classifier was {base}. If it lies elsewhere now, name its directory with "
            "base=… or --base",
            error=error,
            base=settings.base,
        ) from error
    model: Any = encoder.model if whole else load_trained(encoder.model, directory)
    if device is None:
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    return TextClassifier(
        cast(Any, model).to(device), tokenizer, classes, max_length=settings.max_length, pairs=settings.pairs
    )

"""A text encoder (BERT, RoBERTa, ELECTRA, DistilBERT, …) with a head that tells classes apart."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from softlaunch.arguments import Arguments
from softlaunch.errors import ArgumentError, CheckpointError
from softlaunch.messages import say
from softlaunch.models.load import read_config
from softlaunch.models.tokenizer import load_tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HeadedEncoder:
    """A classifier; `head`: the paths of the modules that turn the encoder's output into classes.

    They are the classifier itself and what else the checkpoint lacks, such as the pooler of an encoder that has learnt
    masked words alone. `new`: those of them whose weights are random.
    """

    model: PreTrainedModel
    head: list[str]
    new: list[str]


def load_text_tokenizer(
    path: str, max_length: int, *, num_virtual_tokens: int = 0, **hub: Any
) -> PreTrainedTokenizerBase:
    """The tokenizer of an encoder, padding on the right.

    Raises ArgumentError when the encoder takes no `max_length` tokens behind `num_virtual_tokens`, CheckpointError when
    there is no tokenizer.
    """
    config = read_config(path, **hub)
    tokenizer = load_tokenizer(path, **hub)
    tokenizer.padding_side = "right"  # positions are absolute
    limit = min(tokenizer.model_max_length, config.get("max_position_embeddings", tokenizer.model_max_length))
    if max_length <= limit < max_length + num_virtual_tokens:
        raise ArgumentError(
            "max_source_length {asked} and {virtual} virtual tokens in front are {sum} tokens, but {path} takes at "
            "most {limit}: set max_source_length to {fits}, or pre_seq_len lower",
            asked=max_length,
            virtual=num_virtual_tokens,
            sum=max_length + num_virtual_tokens,
            path=path,
            limit=limit,
            fits=limit - num_virtual_tokens,
        )
    if max_length > limit:
        raise ArgumentError(
            "max_source_length is {asked}, but {path} takes at most {limit} tokens",
            asked=max_length,
            path=path,
            limit=limit,
        )
    if tokenizer.pad_token is None:
        raise CheckpointError("{path}: the tokenizer has no pad token, as encoders need it", path=path)
    return tokenizer


def load_encoder(
    path: str,
    classes: Sequence[str],
    *,
    attn_implementation: str | None = None,
    must_be_trained: bool = False,
    will_be_loaded: bool = False,
    **hub: Any,
) -> HeadedEncoder:
    """The encoder at `path`, float32, in evaluation mode, with a head for `classes` (its config's `id2label`).

    A head in the checkpoint is kept if it has as many classes; otherwise a new one is made, and a line says that it
    must be trained. `must_be_trained`: there is no training, so a head that is not there is an error; `will_be_loaded`:
    it comes with an adapter.

    Raises CheckpointError for that, for a model that is no encoder, and for weights that are missing.
    """
    released = read_config(path, **hub)
    kwargs: dict[str, Any] = {"attn_implementation": attn_implementation} if attn_implementation else {}
    labels = dict(enumerate(classes))
    verbosity = transformers_logging.get_verbosity()
    try:
        transformers_logging.set_verbosity_error()  # it would list what is missing; `new` says it shorter
        config = AutoConfig.from_pretrained(path, **hub)
        earlier = dict(config.id2label)
        config.id2label, config.label2id = labels, {name: number for number, name in labels.items()}
        config.problem_type = "single_label_classification"
        loaded: Any = AutoModelForSequenceClassification.from_pretrained(
            path,
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **kwargs,
            **hub,
        )
    except Exception as error:  # whatever transformers, torch and safetensors raise
        raise CheckpointError(
            "{path}: no classifier of texts can be made from this {kind} model: {error}",
            path=path,
            kind=released.get("model_type", "?"),
            error=error,
        ) from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    model, info = loaded
    mismatched = [key[0] if isinstance(key, tuple) else key for key in info["mismatched_keys"]]
    new = sorted({_owner(name) for name in {*info["missing_keys"], *mismatched}})
    outside = [name for name, _ in model.named_children() if name != model.base_model_prefix]
    head = [name for name in outside if any(True for _ in getattr(model, name).parameters())]
    body = [path for path in new if not path.startswith(tuple(head)) and "pooler" not in path]
    if body:
        raise CheckpointError(
            "{path}: the weights do not fit config.json: {number} layers of the encoder are missing or of another "
            "shape ({names}, …)",
            path=path,
            number=len(body),
            names=", ".join(body[:3]),
        )
    if new and must_be_trained:
        raise CheckpointError(
            "{path}: there is no trained head for {number} classes here ({found}); set do_train to train one, or give "
            "adapter, the directory of a trained model",
            path=path,
            number=len(labels),
            found=say("its head has {number} classes", number=len(earlier)) if mismatched else say("it has none"),
        )
    if mismatched and not will_be_loaded:
        values = {"path": path, "found": len(earlier), "needed": len(labels), "names": ", ".join(new)}
        logger.warning(
            say(
                "{path}: its head has {found} classes, {needed} are needed: {names} begin anew and must be trained",
                **values,
            )
        )
    elif new and not will_be_loaded:
        logger.info(say("{path}: {names} begin anew and must be trained", path=path, names=", ".join(new)))
    return HeadedEncoder(model, [*head, *(name for name in new if not name.startswith(tuple(head)))], new)


def load_base_encoder(
    arguments: Arguments, classes: Sequence[str], *, path: str | None = None, **kwargs: bool
) -> HeadedEncoder:
    """`load_encoder` as a run's arguments ask for it, from `path` if that is not their base."""
    model = arguments.model
    return load_encoder(
        path or model.model_name_or_path,
        classes,
        attn_implementation=model.attn_implementation,
        **kwargs,
        **({} if path else model.hub),
    )


def _owner(parameter: str) -> str:
    """The module whose parameter it is, `bert.pooler` of `bert.pooler.dense.weight`."""
    path = parameter.rpartition(".")[0]
    before, pooler, _ = path.partition("pooler")
    return before + pooler if pooler else path

"""A row as the model sees it: its tokens, which of them carry loss, and what the limits cut off."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from softlaunch.data.classification import encode_texts
from softlaunch.data.encode import (
    IGNORED_LABEL,
    EncodeOptions,
    encode_answers,
    encode_for_training,
    encode_prompts,
)
from softlaunch.data.labelled import LabelledRow

_NO_LIMIT = 1 << 30


class Token(NamedTuple):
    """One token, and whether the loss counts it."""

    id: int
    text: str
    has_loss: bool


@dataclass(frozen=True)
class Cut:
    """What the limits left out: of a part of the row ("prompt", "answer"; "text", "second text"), so many tokens."""

    part: str
    num_tokens: int
    text: str


@dataclass(frozen=True)
class ExplainedRow:
    """`spans` are the decoded stretches of tokens with and without loss, in order: (text, has_loss)."""

    row_id: int
    tokens: list[Token]
    spans: list[tuple[str, bool]]
    cuts: list[Cut]


def explain_row(
    row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, options: EncodeOptions, *, with_answer: bool = True
) -> ExplainedRow:
    """`row` (of `read_rows`) as it is trained on, or, without its answer, as it is put to the model.

    Raises as `encode_for_training` does.
    """
    batch = {name: [row[name]] for name in ("prompt", "response", "history") if name in row}
    prompts, prompt_ids, num_cut = encode_prompts(batch, tokenizer, options)
    ids, labels = prompt_ids[0], [IGNORED_LABEL] * len(prompt_ids[0])
    cuts = _cut_from_prompt(batch, tokenizer, options, prompts[0], num_cut[0])
    if with_answer:
        encoded = encode_for_training(batch, tokenizer, options)
        ids, labels = encoded["input_ids"][0], encoded["labels"][0]
        lost = encode_answers(batch, tokenizer)[0][options.max_target_length :]
        cuts += [Cut("answer", len(lost), str(tokenizer.decode(lost)))] if lost else []
    tokens = [Token(i, _text(tokenizer, i), label != IGNORED_LABEL) for i, label in zip(ids, labels, strict=True)]
    spans = [
        (str(tokenizer.decode([token.id for token in span])), has_loss)
        for has_loss, span in groupby(tokens, key=lambda token: token.has_loss)
    ]
    return ExplainedRow(row["row_id"], tokens, spans, cuts)


def _cut_from_prompt(
    batch: dict[str, list[Any]], tokenizer: PreTrainedTokenizerBase, options: EncodeOptions, kept: Any, num_cut: int
) -> list[Cut]:
    if not num_cut:
        return []
    if options.legacy_truncation:
        _, (whole,), _ = encode_prompts(batch, tokenizer, replace(options, max_source_length=1 << 40))
        return [Cut("prompt", num_cut, str(tokenizer.decode(whole[options.max_source_length :])))]
    history = (batch.get("history") or [[]])[0] or []
    lost_turns = history[: len(history) - len(kept.history)]
    lost = [text for turn in lost_turns for text in turn] + [batch["prompt"][0][len(kept.question) :]]
    return [Cut("prompt", num_cut, "\n".join(text for text in lost if text))]


def _text(tokenizer: PreTrainedTokenizerBase, token_id: int) -> str:
    """A token as text, with its leading space; its name in the vocabulary where it is a part of a character."""
    text, name = str(tokenizer.decode([token_id])), str(tokenizer.convert_ids_to_tokens(token_id))
    return name if "\ufffd" in text or name.startswith("▁") or not text else text


def explain_text(row: LabelledRow, tokenizer: PreTrainedTokenizerBase, max_length: int) -> ExplainedRow:
    """A text, or a pair of texts, as a classifier sees it; no token of it carries loss."""
    kept, whole = (encode_texts(tokenizer, [row.text], [row.pair], n).encodings[0] for n in (max_length, _NO_LIMIT))
    tokens = [Token(token_id, str(tokenizer.decode([token_id])), False) for token_id in kept.ids]
    cuts = []
    for number, (part, text) in enumerate((("text", row.text), ("second text", row.pair or ""))):
        num_lost = whole.sequence_ids.count(number) - kept.sequence_ids.count(number)
        ends = [end for (_, end), of in zip(kept.offsets, kept.sequence_ids, strict=True) if of == number]
        if num_lost:
            cuts.append(Cut(part, num_lost, text[max(ends, default=0) :]))
    return ExplainedRow(row.row_id, tokens, [(str(tokenizer.decode(kept.ids)), False)], cuts)

"""Rows to token ids and labels, through the tokenizer's chat template.

Both functions take a batch of rows and fit `Dataset.map(encode_for_training, batched=True, fn_kwargs={…})`. A batch has
the columns `prompt`, `response` and, if rows may have one, `history`: lists of [question, answer], oldest first.

The limits are the original ChatGLM2-6B script's: `max_source_length` counts the whole prompt with its special tokens,
`max_target_length` the answer without the eos token that is always put behind it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from softlaunch.errors import ArgumentError, DataError

IGNORED_LABEL = -100
_PROBE = "§answer§"


@dataclass(frozen=True)
class EncodeOptions:
    """How rows are encoded.

    `source_prefix` goes where the chat template names a variable `source_prefix`, else in front of the question.
    `legacy_truncation` cuts a long prompt as the original script does: on the right, and the end of the template
    (`答：`) with it. Without it the oldest turns of the history go first, then the end of the question.
    """

    max_source_length: int = 1024
    max_target_length: int = 128
    source_prefix: str = ""
    train_on_all_turns: bool = False
    legacy_truncation: bool = False


class Prompt(NamedTuple):
    """A question and the turns before it, [question, answer] pairs, oldest first."""

    question: str
    history: Sequence[Sequence[str]] = ()

    def messages(self) -> list[dict[str, str]]:
        turns = [
            message
            for question, answer in self.history
            for message in ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
        ]
        return [*turns, {"role": "user", "content": self.question}]


def encode_for_training(
    batch: Mapping[str, Sequence[Any]], tokenizer: PreTrainedTokenizerBase, options: EncodeOptions
) -> dict[str, list[Any]]:
    """Prompt and answer as `input_ids` and `labels`, lists of the same length.

    The loss is on the last answer and on the eos token behind it. With `train_on_all_turns` it is also on the answers
    of the history. That changes labels alone, never `input_ids`: an older answer stays followed by what the template
    puts there, which carries loss only if it is the eos token. ChatGLM2 and ChatGLM3 have none there, so stopping is
    learnt from the last answer, and the history looks in training as it does when the model answers.

    Beside them `num_source_tokens` and `num_target_tokens`, the lengths of prompt and answer before they were cut, and
    `num_cut_source_tokens` and `num_cut_target_tokens`, what the limits cost each row.

    Raises DataError for a history that the tokenizer has no template for, ArgumentError for limits below the template
    and for a tokenizer without an eos token.
    """
    if tokenizer.eos_token_id is None:
        raise ArgumentError(
            "{path}: the tokenizer has no eos token, with which answers end; this is no model that answers",
            path=tokenizer.name_or_path,
        )
    prompts, prompt_ids, num_cut = encode_prompts(batch, tokenizer, options)
    answer_ids = encode_answers(batch, tokenizer)
    columns: dict[str, list[Any]] = {"input_ids": [], "labels": []}
    for prompt, source, answer in zip(prompts, prompt_ids, answer_ids, strict=True):
        target = [*answer[: options.max_target_length], tokenizer.eos_token_id]
        labels = [IGNORED_LABEL] * len(source)
        if options.train_on_all_turns and prompt.history:
            labels = _history_labels(tokenizer, prompt, options)[: len(source)]
        columns["input_ids"].append(source + target)
        columns["labels"].append(labels + target)
    columns["num_source_tokens"] = [len(ids) + cut for ids, cut in zip(prompt_ids, num_cut, strict=True)]
    columns["num_target_tokens"] = [len(answer) for answer in answer_ids]
    columns["num_cut_source_tokens"] = num_cut
    columns["num_cut_target_tokens"] = [max(len(answer) - options.max_target_length, 0) for answer in answer_ids]
    return columns


def encode_for_generation(
    batch: Mapping[str, Sequence[Any]], tokenizer: PreTrainedTokenizerBase, options: EncodeOptions
) -> dict[str, list[Any]]:
    """The prompts alone as `input_ids`, ready to be answered, with the responses as text in `reference`.

    Raises as `encode_for_training` does.
    """
    _, prompt_ids, num_cut = encode_prompts(batch, tokenizer, options)
    return {
        "input_ids": prompt_ids,
        "reference": list(batch["response"]),
        "num_source_tokens": [len(ids) + cut for ids, cut in zip(prompt_ids, num_cut, strict=True)],
        "num_cut_source_tokens": num_cut,
    }


def encode_prompts(
    batch: Mapping[str, Sequence[Any]], tokenizer: PreTrainedTokenizerBase, options: EncodeOptions
) -> tuple[list[Prompt], list[list[int]], list[int]]:
    """The prompts as far as they fit, their ids, and how many ids of each did not fit.

    With `legacy_truncation` the prompts are whole: there the ids alone are cut.
    """
    histories = batch.get("history") or [()] * len(batch["prompt"])
    prompts = [Prompt(question, history or ()) for question, history in zip(batch["prompt"], histories, strict=True)]
    all_ids = _prompt_ids(tokenizer, _render(tokenizer, prompts, options))
    num_cut = [max(len(ids) - options.max_source_length, 0) for ids in all_ids]
    for index, ids in enumerate(all_ids):
        if not num_cut[index]:
            continue
        if options.legacy_truncation:
            all_ids[index] = ids[: options.max_source_length]
        else:
            prompts[index], all_ids[index] = _fit(tokenizer, prompts[index], options)
            num_cut[index] = len(ids) - len(all_ids[index])
    return prompts, all_ids, num_cut


def _fit(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, options: EncodeOptions) -> tuple[Prompt, list[int]]:
    """The most of a prompt that fits: without its oldest turns, then without the end of the question."""
    shorter = [Prompt(prompt.question, prompt.history[turn:]) for turn in range(len(prompt.history) + 1)]
    candidates = _prompt_ids(tokenizer, _render(tokenizer, shorter, options))
    for candidate, ids in zip(shorter, candidates, strict=True):
        if len(ids) <= options.max_source_length:
            return candidate, ids
    question = tokenizer(
        prompt.question, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
    )
    ends = [end for _, end in question["offset_mapping"]]
    keep = len(ends) - (len(ids) - options.max_source_length)
    while keep > 0:  # a text that was cut in the middle of a word may take a token more than it did as a part
        candidate = Prompt(prompt.question[: ends[keep - 1]])
        (ids,) = _prompt_ids(tokenizer, _render(tokenizer, [candidate], options))
        if len(ids) <= options.max_source_length:
            return candidate, ids
        keep -= len(ids) - options.max_source_length
    (template,) = _prompt_ids(tokenizer, _render(tokenizer, [Prompt("")], options))
    raise ArgumentError(
        "max_source_length is {max_source_length}, but the prompt's template and source_prefix alone take "
        "{num_tokens} tokens; raise it so that the question fits too, or set legacy_truncation to cut the "
        "template",
        max_source_length=options.max_source_length,
        num_tokens=len(template),
    )


def _render(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], options: EncodeOptions) -> list[str]:
    """The prompts as text, up to where the answer begins."""
    prefix = options.source_prefix
    if tokenizer.chat_template is None:
        if any(prompt.history for prompt in prompts):
            raise DataError(
                "there are rows with a history, but the tokenizer has no chat template to write turns with; "
                "leave out history_column, or put a chat_template.jinja beside the tokenizer"
            )
        return [prefix + prompt.question for prompt in prompts]
    if "source_prefix" in str(tokenizer.chat_template):
        variables: dict[str, Any] = {"source_prefix": prefix}
    else:
        prompts, variables = [prompt._replace(question=prefix + prompt.question) for prompt in prompts], {}
    conversations = [prompt.messages() for prompt in prompts]
    texts: Any = tokenizer.apply_chat_template(conversations, tokenize=False, add_generation_prompt=True, **variables)
    return texts


def _prompt_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str], **kwargs: Any) -> Any:
    """Ids of rendered prompts; a chat template has written the special tokens already."""
    is_plain = tokenizer.chat_template is None
    encoded = tokenizer(
        texts, add_special_tokens=is_plain, split_special_tokens=is_plain, return_attention_mask=False, **kwargs
    )
    return encoded if kwargs else encoded["input_ids"]


def encode_answers(batch: Mapping[str, Sequence[Any]], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """The ids of the responses, whole and without an eos token."""
    prefix = _answer_prefix(tokenizer)
    return _plain_ids(tokenizer, [prefix + response for response in batch["response"]])


def _plain_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Ids of texts in which nothing is a special token, whatever it looks like."""
    return tokenizer(texts, add_special_tokens=False, split_special_tokens=True, return_attention_mask=False)[
        "input_ids"
    ]


def _answer_prefix(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the template puts between the end of a prompt and the answer; a line break in ChatGLM3, mostly nothing."""
    if tokenizer.chat_template is None:
        return ""
    question = {"role": "user", "content": "?"}
    prompt: Any = tokenizer.apply_chat_template([question], tokenize=False, add_generation_prompt=True)
    full: Any = tokenizer.apply_chat_template([question, {"role": "assistant", "content": _PROBE}], tokenize=False)
    return full[len(prompt) :].partition(_PROBE)[0] if full.startswith(prompt) else ""


def _history_labels(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, options: EncodeOptions) -> list[int]:
    """Labels of a rendered prompt: the ids of the history's answers, IGNORED_LABEL elsewhere."""
    spans = _answer_spans(tokenizer, prompt, options)
    encoded = _prompt_ids(tokenizer, _render(tokenizer, [prompt], options), return_offsets_mapping=True)
    ids, offsets = encoded["input_ids"][0], encoded["offset_mapping"][0]
    labels = [IGNORED_LABEL] * len(ids)
    for start, end in spans:
        for index, (token_start, token_end) in enumerate(offsets):
            is_answer = start <= token_start < end and token_end > token_start
            if is_answer or (token_start == end and ids[index] == tokenizer.eos_token_id):
                labels[index] = ids[index]
    return labels


def _answer_spans(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, options: EncodeOptions) -> list[tuple[int, int]]:
    """Where the answers of the history stand in the rendered prompt: [start, end) in characters.

    A template is a program that may trim or rewrite what it is given. So an answer is not searched for: it lies between
    the prompt that asked for it and what stays the same when it is exchanged for another one.
    """
    history = prompt.history
    asked = [Prompt(question, history[:turn]) for turn, (question, _) in enumerate(history)]
    exchanged = [
        prompt._replace(history=[*history[:turn], (question, _PROBE), *history[turn + 1 :]])
        for turn, (question, _) in enumerate(history)
    ]
    (text,) = _render(tokenizer, [prompt], options)
    spans = []
    for before, other in zip(_render(tokenizer, asked, options), _render(tokenizer, exchanged, options), strict=True):
        behind = other[len(before) :].partition(_PROBE)[2]
        if not (text.startswith(before) and other.startswith(before) and text.endswith(behind)):
            raise ArgumentError(
                "train_on_all_turns is set, but this tokenizer's chat template writes a turn differently once it has "
                "become history, so that its answer cannot be found; leave the option out"
            )
        spans.append((len(before), len(text) - len(behind)))
    return spans

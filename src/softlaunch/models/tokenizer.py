"""Tokenizers by path, without running a checkpoint's own code.

ChatGLM2 and ChatGLM3 are released with a sentencepiece file and Python code that recent transformers cannot run. Here
the file becomes a fast tokenizer that gives the ids of the original. In the original no text can become a control token
(`[gMASK]`, `<|user|>`, `</s>`, …): they are put in by id. The same holds here: plain text is encoded with
`split_special_tokens`, and a chat template writes `GUARD` into whatever looks like a control token in a message.
"""

import copy
import json
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import cached_file

from softlaunch.errors import ArgumentError, CheckpointError

logger = logging.getLogger(__name__)

PromptStyle = Literal["chatglm2", "chatglm3"]

# A Unicode noncharacter, which text meant for interchange does not hold. Any tokenizer made here drops it.
GUARD = "\ufdd0"

_ROLES = ("system", "user", "assistant", "observation")
_ROLE_TOKENS = tuple(f"<|{role}|>" for role in _ROLES)
# By prompt style, in the order of their ids, which follow the last piece of the sentencepiece file.
_CONTROL_TOKENS: dict[PromptStyle, tuple[str, ...]] = {
    "chatglm2": ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop"),
    "chatglm3": ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop", *_ROLE_TOKENS),
}
# Control tokens that a chat template may write; no text can reach the other ones.
_TEMPLATE_TOKENS = {"[gMASK]", "sop", *_ROLE_TOKENS}

_SENTENCEPIECE_BPE = 2  # trainer_spec.model_type
_NORMAL, _USER_DEFINED = 1, 4  # piece types


class ChatGLMTokenizer(PreTrainedTokenizerFast):
    """The fast tokenizer of a released ChatGLM2 or ChatGLM3 directory; see `load_tokenizer`."""

    def apply_chat_template(self, conversation: Any, *args: Any, **kwargs: Any) -> Any:
        """As in the base class; of what is rendered, the control tokens of the template alone become control tokens."""
        kwargs["tokenizer_kwargs"] = {"split_special_tokens": False, **(kwargs.get("tokenizer_kwargs") or {})}
        return super().apply_chat_template(conversation, *args, **kwargs)

    def build_prompt(self, query: str, history: Iterable[Sequence[str]] | None = None) -> str:
        """The prompt as text and without `[gMASK] sop`, which encoding it adds: ChatGLM2's method of that name.

        `history` holds [question, answer] pairs, oldest first.
        """
        messages = []
        for question, answer in history or ():
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        messages.append({"role": "user", "content": query})
        text = self.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return text.removeprefix("[gMASK]sop").replace(GUARD, "")

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> tuple[str, ...]:
        """Saves a tokenizer that plain `AutoTokenizer` reads; ids and chat templates are the same.

        One thing differs there, since `AutoTokenizer` cannot tell text from template: in a text that is encoded without
        a chat template, a literal `[gMASK]`, `</s>` or `<|user|>` becomes the control token.
        """
        plain: Any = copy.copy(self)
        plain.__class__ = PreTrainedTokenizerFast
        plain.split_special_tokens = False
        plain.init_kwargs = {**self.init_kwargs, "split_special_tokens": False}
        return plain.save_pretrained(save_directory, *args, **kwargs)


def load_tokenizer(
    path: str | os.PathLike, *, prompt_style: PromptStyle | None = None, **hub_kwargs: Any
) -> PreTrainedTokenizerBase:
    """The tokenizer of a local directory or hub id, padding on the left.

    A ChatGLM2-6B or ChatGLM3-6B directory as released gives the original's ids (token for token: special tokens,
    truncation, prompts) from its `tokenizer.model`; the directory is only read. Both share that file, so which of them
    it is follows from the configs beside it, or from `prompt_style`. Decoding differs from the original in two points:
    `skip_special_tokens` also works for ChatGLM3, and bytes that are no UTF-8 spoil the run of byte tokens around them.
    Anything else is read by `AutoTokenizer` without remote code; a missing pad token becomes the eos token.

    `hub_kwargs`: `revision`, `cache_dir`, `token` for a hub id. A local directory causes no network call.

    Raises CheckpointError for a missing directory or file and for kinds that are not supported (ChatGLM-6B, GLM-4 as
    released), ArgumentError for a `prompt_style` given with another kind of model.
    """
    path = os.fspath(path)
    config = _read_json(path, "config.json", hub_kwargs)
    tokenizer_config = _read_json(path, "tokenizer_config.json", hub_kwargs)
    if not _is_released_chatglm(config, tokenizer_config):
        if prompt_style is not None:
            raise ArgumentError(
                f"{path}: prompt_style is {prompt_style!r}, but this is neither ChatGLM2-6B nor ChatGLM3-6B as "
                "released; leave it out, the tokenizer's own chat template is used"
            )
        return _load_auto(path, hub_kwargs)
    file = _find_file(path, "tokenizer.model", hub_kwargs)
    if "position_encoding_2d" in config or (file is None and _find_file(path, "ice_text.model", hub_kwargs)):
        raise CheckpointError(
            f"{path}: this is ChatGLM-6B (v1), which is not supported yet; use ChatGLM2-6B or ChatGLM3-6B"
        )
    if file is None:
        raise CheckpointError(
            f"{path}: there is no tokenizer.model; copy the file of that name from the released ChatGLM2-6B or "
            "ChatGLM3-6B (they share it) into the directory"
        )
    model = _read_sentencepiece(file)
    if prompt_style is None:
        prompt_style, reason = _find_prompt_style(path, config, tokenizer_config, hub_kwargs)
    elif prompt_style in _CONTROL_TOKENS:
        reason = "as asked for"
    else:
        raise ArgumentError(f"prompt_style is {prompt_style!r}; allowed are {', '.join(_CONTROL_TOKENS)}")
    logger.info("%s: prompts in the style of %s (%s)", path, prompt_style, reason)
    return _build_chatglm(model, prompt_style, name_or_path=path)


def _is_released_chatglm(config: Mapping[str, Any], tokenizer_config: Mapping[str, Any]) -> bool:
    tokenizer_class = tokenizer_config.get("tokenizer_class")
    if tokenizer_class is None:
        return config.get("model_type") == "chatglm"
    return tokenizer_class in ("ChatGLMTokenizer", "ChatGLM4Tokenizer")


def _find_prompt_style(
    path: str, config: Mapping[str, Any], tokenizer_config: Mapping[str, Any], hub_kwargs: Mapping[str, Any]
) -> tuple[PromptStyle, str]:
    """ChatGLM2 or ChatGLM3, and why: by its role tokens, else by name, else by the released code, which is not run."""
    if "<|" in json.dumps(tokenizer_config, ensure_ascii=False):
        return "chatglm3", "tokenizer_config.json knows role tokens"
    names = [tokenizer_config.get("name_or_path"), config.get("_name_or_path"), path]
    for name in filter(None, names):
        for style in _CONTROL_TOKENS:
            if style in str(name).lower().replace("-", "").replace("_", ""):
                return style, f"from the name {name}"
    code = _find_file(path, "tokenization_chatglm.py", hub_kwargs)
    if code is not None:
        has_roles = "<|user|>" in code.read_text(encoding="utf-8")
        return "chatglm3" if has_roles else "chatglm2", "from tokenization_chatglm.py"
    logger.warning(
        "%s: nothing here tells ChatGLM2 from ChatGLM3; if it is ChatGLM3, give prompt_style chatglm3, "
        "or put ChatGLM3's name into _name_or_path of config.json",
        path,
    )
    return "chatglm2", "no sign of ChatGLM3"


def _build_chatglm(model: Any, prompt_style: PromptStyle, name_or_path: str) -> ChatGLMTokenizer:
    vocab = {piece.piece: index for index, piece in enumerate(model.pieces)}
    for token in _CONTROL_TOKENS[prompt_style]:
        vocab[token] = len(vocab)
    unk, eos = (model.pieces[index].piece for index in (model.trainer_spec.unk_id, model.trainer_spec.eos_id))
    backend = Tokenizer(
        models.BPE(vocab=vocab, merges=_merges(model.pieces), unk_token=unk, fuse_unk=True, byte_fallback=True)
    )
    # sentencepiece's "dummy prefix": also behind every control token, since the original encodes the parts one by one
    backend.normalizer = normalizers.Sequence(
        [normalizers.Replace(GUARD, ""), normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.post_processor = processors.TemplateProcessing(
        single="[gMASK] sop $A", special_tokens=[(token, vocab[token]) for token in ("[gMASK]", "sop")]
    )
    matched = [unk, eos, *(token for token in _CONTROL_TOKENS[prompt_style] if token in _TEMPLATE_TOKENS)]
    backend.add_special_tokens(
        # single_word: only matters to whoever reads the saved tokenizer and encodes "sophisticated"
        [AddedToken(token, special=True, normalized=False, single_word=token == "sop") for token in matched]
    )
    return ChatGLMTokenizer(
        tokenizer_object=backend,
        name_or_path=name_or_path,
        unk_token=unk,
        pad_token=unk,
        eos_token=eos,
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
        split_special_tokens=True,
        chat_template=_chat_template(prompt_style, matched),
    )


def _merges(pieces: Iterable[Any]) -> list[tuple[str, str]]:
    """All pairs of pieces that join into a piece, the best score first: the order in which sentencepiece joins them."""
    scores = {piece.piece: piece.score for piece in pieces if piece.type == _NORMAL}
    return [
        (piece[:cut], piece[cut:])
        for piece in sorted(scores, key=lambda piece: -scores[piece])
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]


def _chat_template(prompt_style: PromptStyle, control_tokens: Iterable[str]) -> str:
    """A Jinja template; the variable `source_prefix` (ChatGLM2 only) is text in front of the first round."""
    guard = "".join(f"|replace('{token}', '{token[0]}\\ufdd0{token[1:]}')" for token in control_tokens)
    if prompt_style == "chatglm2":
        return (
            f"[gMASK]sop{{% if source_prefix %}}{{{{ '\\ufdd0' ~ source_prefix{guard} }}}}{{% endif %}}"
            "{% set rounds = namespace(count=0) %}"
            "{% for message in messages %}"
            f"{{% set content = message['content']{guard} %}}"
            "{% if message['role'] == 'user' %}"
            "{% set rounds.count = rounds.count + 1 %}"
            "{{ '[Round ' ~ rounds.count ~ ']\\n\\n问：' ~ content ~ '\\n\\n' }}"
            "{% elif message['role'] == 'assistant' %}"
            "{{ '答：' ~ content ~ '\\n\\n' }}"
            "{% else %}"
            "{{ raise_exception('ChatGLM2 knows the roles user and assistant, not ' ~ message['role']) }}"
            "{% endif %}"
            "{% endfor %}"
            "{% if add_generation_prompt %}{{ '答：' }}{% endif %}"
        )
    return (
        "[gMASK]sop"
        "{% for message in messages %}"
        f"{{% if message['role'] not in {list(_ROLES)} %}}"
        "{{ raise_exception('ChatGLM3 knows the roles " + ", ".join(_ROLES) + ", not ' ~ message['role']) }}"
        "{% endif %}"
        f"{{% set content = message['content']{guard} %}}"
        f"{{% set metadata = message['metadata']|default(''){guard} %}}"
        "{{ '<|' ~ message['role'] ~ '|>' ~ metadata ~ '\\n' }}{% if content %}{{ ' ' ~ content }}{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    )


def _read_sentencepiece(file: Path) -> Any:
    """The `ModelProto` in `file`, checked to be of the kind that `_build_chatglm` reproduces exactly."""
    content = file.read_bytes()
    if content.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{file}: this is a Git LFS pointer, not the file itself; run `git lfs pull` there")
    if re.match(rb"[A-Za-z0-9+/]+=* \d+\r?\n", content):
        raise CheckpointError(
            f"{file}: this is a tiktoken vocabulary, as GLM-4 is released with; that layout is not supported yet. "
            "Use GLM-4 in transformers' own layout (the repositories whose name ends in -hf)"
        )
    model: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        raise CheckpointError(f"{file}: this is no sentencepiece model, or it is cut off; fetch it again") from error
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    expected = {
        "the type BPE": trainer.model_type == _SENTENCEPIECE_BPE,
        "byte fallback": trainer.byte_fallback,
        "no text normalization": not normalizer.precompiled_charsmap and not normalizer.remove_extra_whitespaces,
        "a space put in front": normalizer.add_dummy_prefix and not trainer.treat_whitespace_as_suffix,
        "an eos piece": trainer.eos_id >= 0,
        "no user-defined pieces": all(piece.type != _USER_DEFINED for piece in model.pieces),
        "no piece of a control token's name": {piece.piece for piece in model.pieces}.isdisjoint(
            _CONTROL_TOKENS["chatglm3"]
        ),
    }
    unmet = [name for name, is_met in expected.items() if not is_met]
    if unmet:
        raise CheckpointError(
            f"{file}: this one lacks {', '.join(unmet)}. The sentencepiece model of ChatGLM2 and ChatGLM3 has "
            f"{', '.join(expected)}; this one belongs to another model, or was trained with other settings"
        )
    return model


def _load_auto(path: str, hub_kwargs: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, **hub_kwargs)
    except Exception as error:  # whatever transformers and tokenizers raise over files that are missing or cut off
        raise CheckpointError(
            f"{path}: no tokenizer can be loaded from here: {error}\nThe directory needs a tokenizer.json, or the "
            "vocabulary files of a tokenizer that transformers knows; code beside a checkpoint is never run"
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    return tokenizer


def _read_json(path: str, name: str, hub_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a JSON file of the checkpoint, {} when there is no such file."""
    file = _find_file(path, name, hub_kwargs)
    if file is None:
        return {}
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file}: this is not valid JSON ({error}); fetch the file again") from error


def _find_file(path: str, name: str, hub_kwargs: Mapping[str, Any]) -> Path | None:
    directory = Path(path)
    if directory.is_dir():
        return directory / name if (directory / name).is_file() else None
    if directory.exists():
        raise CheckpointError(f"{path}: this is a file; give the directory that holds it")
    try:
        file = cached_file(path, name, _raise_exceptions_for_missing_entries=False, **hub_kwargs)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: no such directory, and nothing under this name on the hub ({str(error).splitlines()[0]})"
        ) from error
    return None if file is None else Path(file)

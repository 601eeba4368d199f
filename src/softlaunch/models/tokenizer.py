"""Tokenizers by path, without running a checkpoint's own code."""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import cached_file

from softlaunch.errors import ArgumentError, CheckpointError
from softlaunch.messages import say
from softlaunch.models.chatglm_tokenizer import (
    CONTROL_TOKENS,
    ChatGLMStyle,
    build_chatglm_tokenizer,
    read_sentencepiece,
)
from softlaunch.models.source import chatglm_6b, nothing_there, require_model
from softlaunch.models.tiktoken_tokenizer import build_glm4, is_tiktoken

logger = logging.getLogger(__name__)

PROMPT_STYLES = ("auto", *CONTROL_TOKENS, "chat_template", "plain")


def load_tokenizer(
    path: str | os.PathLike, *, prompt_style: str = "auto", **hub_kwargs: Any
) -> PreTrainedTokenizerBase:
    """The tokenizer of a local directory or hub id, padding on the left.

    A ChatGLM2-6B or ChatGLM3-6B directory as released gives the original's ids (token for token: special tokens,
    truncation, prompts) from its `tokenizer.model`; the directory is only read. Both share that file, so which of them
    it is follows from the configs beside it, or from `prompt_style`. Decoding differs from the original in two points:
    `skip_special_tokens` also works for ChatGLM3, and bytes that are no UTF-8 spoil the run of byte tokens around them.
    GLM-4-9B's comes from its tiktoken file, see `tiktoken_tokenizer`. Anything else is read by `AutoTokenizer` without
    remote code; a missing pad token becomes the eos token.

    `prompt_style`: `auto`; `chatglm2` or `chatglm3` for a released directory that does not tell; `chat_template` to
    insist that the tokenizer has one; `plain` to use none. `hub_kwargs`: `revision`, `cache_dir`, `token` for a hub id.
    A local directory causes no network call.

    Raises CheckpointError for a missing directory or file and for kinds that are not supported (ChatGLM-6B),
    ArgumentError for a `prompt_style` that does not go with the tokenizer.
    """
    path = os.fspath(path)
    if prompt_style not in PROMPT_STYLES:
        raise ArgumentError(
            "prompt_style is {prompt_style!r}; allowed are {allowed}",
            prompt_style=prompt_style,
            allowed=", ".join(PROMPT_STYLES),
        )
    require_model(path, **hub_kwargs)
    config = _read_json(path, "config.json", hub_kwargs)
    if not config and not Path(path).is_dir():
        raise nothing_there(path, say("no config.json found"))  # offline, every further look would take half a minute
    tokenizer_config = _read_json(path, "tokenizer_config.json", hub_kwargs)
    if not config and not tokenizer_config:
        raise CheckpointError(
            "{path}: no config.json and no tokenizer_config.json here; give a checkpoint directory as released",
            path=path,
        )
    if _is_released_chatglm(config, tokenizer_config):
        tokenizer = _load_chatglm(path, prompt_style, config, tokenizer_config, hub_kwargs)
    elif prompt_style in CONTROL_TOKENS:
        raise ArgumentError(
            "{path}: prompt_style is {prompt_style!r}, but this is neither ChatGLM2-6B nor ChatGLM3-6B as "
            "released; leave it out, the tokenizer's own chat template is used",
            path=path,
            prompt_style=prompt_style,
        )
    else:
        tokenizer = _load_auto(path, hub_kwargs)
    if prompt_style == "chat_template" and tokenizer.chat_template is None:
        raise ArgumentError(
            "{path}: prompt_style is 'chat_template', but the tokenizer has none; use 'plain'", path=path
        )
    if prompt_style == "plain":
        tokenizer.chat_template = None
    return tokenizer


def _load_chatglm(
    path: str,
    prompt_style: str,
    config: Mapping[str, Any],
    tokenizer_config: Mapping[str, Any],
    hub_kwargs: Mapping[str, Any],
) -> PreTrainedTokenizerBase:
    file = _find_file(path, "tokenizer.model", hub_kwargs)
    if "position_encoding_2d" in config or (file is None and _find_file(path, "ice_text.model", hub_kwargs)):
        raise chatglm_6b(path)
    if file is None:
        raise CheckpointError(
            "{path}: there is no tokenizer.model; copy the file of that name from the released ChatGLM2-6B or "
            "ChatGLM3-6B (they share it) into the directory",
            path=path,
        )
    if is_tiktoken(file):
        if prompt_style in CONTROL_TOKENS:
            raise ArgumentError(
                "{path}: prompt_style is {prompt_style!r}, but this is GLM-4; leave it out",
                path=path,
                prompt_style=prompt_style,
            )
        return build_glm4(file, name_or_path=path)
    model = read_sentencepiece(file)
    style, reason = _find_prompt_style(path, config, tokenizer_config, hub_kwargs)
    for asked in CONTROL_TOKENS:
        if asked == prompt_style:
            style, reason = asked, say("as asked for")
    logger.info(say("{path}: prompts in the style of {style} ({reason})", path=path, style=style, reason=reason))
    return build_chatglm_tokenizer(model, style, name_or_path=path)


def _is_released_chatglm(config: Mapping[str, Any], tokenizer_config: Mapping[str, Any]) -> bool:
    tokenizer_class = tokenizer_config.get("tokenizer_class")
    if tokenizer_class is None:
        return config.get("model_type") == "chatglm"
    return tokenizer_class in ("ChatGLMTokenizer", "ChatGLM4Tokenizer")


def _find_prompt_style(
    path: str, config: Mapping[str, Any], tokenizer_config: Mapping[str, Any], hub_kwargs: Mapping[str, Any]
) -> tuple[ChatGLMStyle, str]:
    """ChatGLM2 or ChatGLM3, and why: by its role tokens, else by name, else by the released code, which is not run."""
    if "<|" in json.dumps(tokenizer_config, ensure_ascii=False):
        return "chatglm3", say("tokenizer_config.json knows role tokens")
    paths = [tokenizer_config.get("name_or_path"), config.get("_name_or_path"), path]
    for name in (Path(path).name for path in paths if path):
        for style in CONTROL_TOKENS:
            if style in name.lower().replace("-", ""):
                return style, say("from the name {name}", name=name)
    code = _find_file(path, "tokenization_chatglm.py", hub_kwargs)
    if code is not None:
        has_roles = "<|user|>" in code.read_text(encoding="utf-8")
        return "chatglm3" if has_roles else "chatglm2", say("from tokenization_chatglm.py")
    logger.warning(
        say(
            "{path}: nothing here tells ChatGLM2 from ChatGLM3; if it is ChatGLM3, give prompt_style chatglm3, or put "
            "ChatGLM3's name into _name_or_path of config.json",
            path=path,
        )
    )
    return "chatglm2", say("no sign of ChatGLM3")


def _load_auto(path: str, hub_kwargs: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, **hub_kwargs)
    except Exception as error:  # whatever transformers and tokenizers raise over files that are missing or cut off
        if not Path(path).is_dir():
            raise nothing_there(path, error) from error
        raise CheckpointError(
            "{path}: no tokenizer can be loaded from here: {error}\nThe directory needs a tokenizer.json, or the "
            "vocabulary files of a tokenizer that transformers knows; code beside a checkpoint is never run",
            path=path,
            error=error,
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
        raise CheckpointError(
            "{file}: this is not valid JSON ({error}); fetch the file again", file=file, error=error
        ) from error


def _find_file(path: str, name: str, hub_kwargs: Mapping[str, Any]) -> Path | None:
    directory = Path(path)
    if directory.is_dir():
        return directory / name if (directory / name).is_file() else None
    try:
        file = cached_file(path, name, _raise_exceptions_for_missing_entries=False, **hub_kwargs)
    except (OSError, ValueError) as error:
        raise nothing_there(path, error) from error
    return None if file is None else Path(file)

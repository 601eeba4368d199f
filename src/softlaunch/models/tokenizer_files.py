"""The tokenizer beside a converted model."""

import shutil
from pathlib import Path

from softlaunch.errors import CheckpointError
from softlaunch.files import write_json
from softlaunch.messages import say
from softlaunch.models.tiktoken_tokenizer import is_tiktoken
from softlaunch.models.tokenizer import load_tokenizer

_VOCABULARY = "tokenizer.model"
_FAST_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def write_glm_tokenizer(source: Path, target: Path) -> list[str]:
    """Write the released tokenizer of `source` as one that `AutoTokenizer` reads; returns notes for the user.

    The released vocabulary goes along: some programs read it, and the way back needs it.
    """
    try:
        load_tokenizer(source).save_pretrained(target)
    except CheckpointError as error:
        return [say("No tokenizer was converted: {error}", error=error)]
    if (source / _VOCABULARY).is_file():  # not when it comes from the hub
        shutil.copyfile(source / _VOCABULARY, target / _VOCABULARY)
    return []


def write_released_tokenizer(source: Path, target: Path) -> list[str]:
    """Write the tokenizer of `source`, in transformers' layout, as it is released; returns notes for the user."""
    notes = [
        say(
            "config.json names the released code: programs that run it need configuration_chatglm.py, "
            "modeling_chatglm.py and tokenization_chatglm.py from the release beside it."
        )
    ]
    vocabulary = source / _VOCABULARY
    if not vocabulary.is_file():
        for name in _FAST_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, target / name)
        return [
            *notes,
            say(
                "The tokenizer stays in transformers' format, which the released code cannot read: {path} is not "
                "there. Copy that file and tokenizer_config.json from the release.",
                path=vocabulary,
            ),
        ]
    shutil.copyfile(vocabulary, target / _VOCABULARY)
    config = _released_tokenizer_config(source)
    write_json(target / "tokenizer_config.json", config)
    return notes


def _released_tokenizer_config(source: Path) -> dict:
    if is_tiktoken(source / _VOCABULARY):
        name, tokenizer_class = "THUDM/glm-4-9b-chat", "ChatGLM4Tokenizer"
    else:
        has_roles = "<|user|>" in load_tokenizer(source).get_vocab()
        name, tokenizer_class = f"THUDM/chatglm{3 if has_roles else 2}-6b", "ChatGLMTokenizer"
    return {
        "name_or_path": name,
        "remove_space": False,
        "do_lower_case": False,
        "tokenizer_class": tokenizer_class,
        "auto_map": {"AutoTokenizer": [f"tokenization_chatglm.{tokenizer_class}", None]},
    }

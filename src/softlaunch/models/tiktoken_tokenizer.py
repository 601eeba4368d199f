"""GLM-4-9B's tokenizer from the file it is released with: tiktoken's text format, a base64 token and its rank a line.

Merges and ids follow from the ranks, and the control tokens follow the last rank: the file determines all of it. What
has been proved, on a small vocabulary of our own: ids and texts equal those of tiktoken itself, on every code point of
Unicode and on thousands of random texts in many scripts (some are recorded in the tests). What has not, for want of the
released vocabulary: that its 151,329 ranks give the original's ids on real text. The two programs cut text into words
with the same pattern but other regex engines; should these one day know different versions of Unicode, characters that
are new to one of them may be cut elsewhere.
"""

import base64
import binascii
import re
from pathlib import Path

from tokenizers import AddedToken, normalizers, processors
from transformers.convert_slow_tokenizer import TikTokenConverter

from softlaunch.errors import CheckpointError
from softlaunch.models.chatglm_tokenizer import GUARD, ChatGLMTokenizer

# How text is cut into words; the alternatives are those of the released code, tried in this order
_PATTERN = "|".join(
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
_ROLES = ("system", "user", "assistant", "observation")
# In the order of their ids, which follow the last rank
_CONTROL_TOKENS = (
    *("<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>"),
    *(f"<|{role}|>" for role in _ROLES),
    *("<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>"),
)


def is_tiktoken(file: Path) -> bool:
    """Whether the first line of `file` is a base64 token and a rank."""
    with file.open("rb") as lines:
        return re.fullmatch(rb"[A-Za-z0-9+/]+=* \d+\r?\n?", lines.readline(1000)) is not None


def build_glm4(file: Path, name_or_path: str) -> ChatGLMTokenizer:
    """The fast tokenizer of a released GLM-4-9B directory, from its `tokenizer.model`.

    Texts get `[gMASK]<sop>` in front. Padding goes to the left, with `<|endoftext|>`, which is also the eos token. (The
    chat model ends its turns with `<|user|>`; `config.json` names both, and generation stops at either.) The chat
    template is the release's without its text for tools: `<|role|>`, metadata, a line break, the message. The name of a
    control token in a plain text or in a message stays text.

    Raises CheckpointError for a file that is cut off or not of this format.
    """
    backend = _Converter(str(file), pattern=_PATTERN).converted()
    backend.normalizer = normalizers.Replace(GUARD, "")
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in _CONTROL_TOKENS])
    backend.post_processor = processors.TemplateProcessing(
        single="[gMASK] <sop> $A",
        pair="[gMASK] <sop> $A $B:1",
        special_tokens=[(token, backend.token_to_id(token)) for token in ("[gMASK]", "<sop>")],
    )
    return ChatGLMTokenizer(
        tokenizer_object=backend,
        name_or_path=name_or_path,
        pad_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        extra_special_tokens=list(_CONTROL_TOKENS[1:]),
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
        split_special_tokens=True,
        chat_template=_chat_template(),
    )


class _Converter(TikTokenConverter):
    """transformers' converter with a reader of its own: tiktoken's caches by path and would have to be installed."""

    @staticmethod
    def load_tiktoken_bpe(tiktoken_url: str) -> dict[bytes, int]:
        return _read_ranks(Path(tiktoken_url))


def _read_ranks(file: Path) -> dict[bytes, int]:
    """Tokens and their ranks; raises CheckpointError unless the ranks are 0, 1, 2, … and every byte has one."""
    ranks = {}
    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise CheckpointError(
                "{file}:{number}: {line!r} is no base64 token with its rank; the file is damaged, fetch it again",
                file=file,
                number=number,
                line=line[:40],
            ) from error
    num_bytes = sum(len(token) == 1 for token in ranks)
    if sorted(ranks.values()) != list(range(len(ranks))) or num_bytes != 256:
        raise CheckpointError(
            "{file}: {num_tokens} tokens with ranks from {first} to {last}, {num_bytes} of them single bytes; "
            "expected are ranks without a gap from 0, and all 256 bytes. The file is cut off or belongs to "
            "another tokenizer; fetch it again",
            file=file,
            num_tokens=len(ranks),
            first=min(ranks.values()),
            last=max(ranks.values()),
            num_bytes=num_bytes,
        )
    return ranks


def _chat_template() -> str:
    guard = "".join(f"|replace('{token}', '{token[0]}\\ufdd0{token[1:]}')" for token in _CONTROL_TOKENS)
    return (
        "[gMASK]<sop>"
        "{% for message in messages %}"
        f"{{% if message['role'] not in {list(_ROLES)} %}}"
        "{{ raise_exception('GLM-4 knows the roles " + ", ".join(_ROLES) + ", not ' ~ message['role']) }}"
        "{% endif %}"
        f"{{{{ '<|' ~ message['role'] ~ '|>' ~ message['metadata']|default(''){guard} ~ '\\n' }}}}"
        f"{{{{ message['content']{guard} }}}}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    )

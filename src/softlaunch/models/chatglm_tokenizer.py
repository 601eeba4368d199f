"""The fast tokenizer of ChatGLM2 and ChatGLM3, made from the sentencepiece file that they are released with.

The released Python code cannot run on recent transformers; here the file gives the ids of the original. In the original
no text can become a control token (`[gMASK]`, `<|user|>`, `</s>`, …): they are put in by id. The same holds here: plain
text is encoded with `split_special_tokens`, and a chat template writes `GUARD` into whatever looks like a control token
in a message.
"""

import copy
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

from softlaunch.errors import CheckpointError
from softlaunch.messages import say

ChatGLMStyle = Literal["chatglm2", "chatglm3"]

# A Unicode noncharacter, which text meant for interchange does not hold. Any tokenizer made here drops it.
GUARD = "\ufdd0"

_ROLES = ("system", "user", "assistant", "observation")
_ROLE_TOKENS = tuple(f"<|{role}|>" for role in _ROLES)
# By prompt style, in the order of their ids, which follow the last piece of the sentencepiece file.
CONTROL_TOKENS: dict[ChatGLMStyle, tuple[str, ...]] = {
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
        return plain.save_pretrained(save_directory, *args, **kwargs)


def build_chatglm_tokenizer(model: Any, prompt_style: ChatGLMStyle, name_or_path: str) -> ChatGLMTokenizer:
    vocab = {piece.piece: index for index, piece in enumerate(model.pieces)}
    for token in CONTROL_TOKENS[prompt_style]:
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
    written = [token for token in CONTROL_TOKENS[prompt_style] if token in _TEMPLATE_TOKENS]
    backend.add_special_tokens(
        # single_word: only matters to whoever reads the saved tokenizer and encodes "sophisticated"
        [
            AddedToken(token, special=True, normalized=False, single_word=token == "sop")
            for token in (unk, eos, *written)
        ]
    )
    return ChatGLMTokenizer(
        tokenizer_object=backend,
        name_or_path=name_or_path,
        unk_token=unk,
        pad_token=unk,
        eos_token=eos,
        extra_special_tokens=written,
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
        split_special_tokens=True,
        chat_template=_chat_template(prompt_style, [unk, eos, *written]),
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


def _chat_template(prompt_style: ChatGLMStyle, control_tokens: Iterable[str]) -> str:
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


def read_sentencepiece(file: Path) -> Any:
    """The `ModelProto` in `file`, checked to be of the kind that `build_chatglm_tokenizer` reproduces exactly."""
    content = file.read_bytes()
    if content.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            "{file}: this is a Git LFS pointer, not the file itself; run `git lfs pull` there", file=file
        )
    model: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        raise CheckpointError(
            "{file}: this is no sentencepiece model, or it is cut off; fetch it again", file=file
        ) from error
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    expected = {
        say("the type BPE"): trainer.model_type == _SENTENCEPIECE_BPE,
        say("byte fallback"): trainer.byte_fallback,
        say("no text normalization"): not normalizer.precompiled_charsmap and not normalizer.remove_extra_whitespaces,
        say("a space put in front"): normalizer.add_dummy_prefix and not trainer.treat_whitespace_as_suffix,
        say("an eos piece"): trainer.eos_id >= 0,
        say("no user-defined pieces"): all(piece.type != _USER_DEFINED for piece in model.pieces),
        say("no piece of a control token's name"): {piece.piece for piece in model.pieces}.isdisjoint(
            CONTROL_TOKENS["chatglm3"]
        ),
    }
    unmet = [name for name, is_met in expected.items() if not is_met]
    if unmet:
        raise CheckpointError(
            "{file}: this one lacks {unmet}. The sentencepiece model of ChatGLM2 and ChatGLM3 has {expected}; "
            "this one belongs to another model, or was trained with other settings",
            file=file,
            unmet=", ".join(unmet),
            expected=", ".join(expected),
        )
    return model

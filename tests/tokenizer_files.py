"""Small tokenizers for tests: a ChatGLM directory in the released layout, and one of another kind."""

import io
import json
import random
from functools import cache
from pathlib import Path

import sentencepiece
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

_TEXT = (
    "类型 上衣 材质 风格 简约 图案 线条 衬衫 宽松 舒适 设计 优雅 你好 请问 今天 天气 怎么样 谢谢 再见 推荐 "
    "the quick brown fox jumps over lazy dogs question answer token user 2024 100"
)


@cache
def sentencepiece_model(model_type: str = "bpe", more_words: str = "") -> bytes:
    """A sentencepiece model with the released one's settings; every test gets the same one."""
    rng = random.Random(0)
    words = f"{_TEXT} {more_words}".split()
    lines = [
        "".join(rng.choice(words) + rng.choice(["", " ", "  ", "，", "。"]) for _ in range(20)) for _ in range(300)
    ]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type=model_type,
        vocab_size=600,
        hard_vocab_limit=False,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def write_released_chatglm(directory: Path, prompt_style: str = "chatglm2", model: bytes | None = None) -> Path:
    """`config.json`, `tokenizer_config.json` and `tokenizer.model` as ChatGLM2-6B or ChatGLM3-6B has them."""
    directory.mkdir(parents=True, exist_ok=True)
    name = f"THUDM/{prompt_style}-6b"
    config = {"_name_or_path": name, "model_type": "chatglm", "num_layers": 2}
    tokenizer_config = {
        "name_or_path": name,
        "tokenizer_class": "ChatGLMTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]},
    }
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    (directory / "tokenizer.model").write_bytes(sentencepiece_model() if model is None else model)
    return directory


def byte_tokenizer(chat_template: str | None = None, eos_token: str = "<|im_end|>") -> PreTrainedTokenizerFast:
    """A byte-level tokenizer as Qwen, Llama or GPT-2 have one, without merges: one token per byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=eos_token,
        extra_special_tokens=["<|im_start|>"],
        chat_template=chat_template,
    )

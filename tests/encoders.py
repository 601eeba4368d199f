"""A tiny random BERT with a vocabulary of its own, and titles whose class a few words give away."""

import random
from pathlib import Path

import torch
from transformers import BertConfig, BertForMaskedLM, BertTokenizer

CLASSES = {"体育": "球赛队员冠军", "财经": "股市基金银行", "天气": "晴雨风雪气温"}
_FILLING = "今日新的大小上下来去中国人年月日"
_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def write_encoder(directory: Path, *, dropout: float = 0.1) -> Path:
    """A BERT in the released layout that has learnt nothing, and has no pooler, as after masked language modelling."""
    directory.mkdir(parents=True, exist_ok=True)
    characters = sorted(set("".join(CLASSES.values()) + _FILLING))
    vocabulary = directory / "vocab.txt"
    vocabulary.write_text("\n".join([*_SPECIAL, *characters]) + "\n", encoding="utf-8")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(_SPECIAL) + len(characters),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    model = BertForMaskedLM(config)
    for name, parameter in model.bert.named_parameters():  # large enough that the first token sees the others
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.5 if "embeddings" in name else 0.25)
    model.save_pretrained(directory)
    BertTokenizer(str(vocabulary)).save_pretrained(directory)
    return directory


def titles(number: int, seed: int = 0) -> list[tuple[str, str]]:
    """(title, class), classes in turn."""
    chosen = random.Random(seed)
    rows = []
    for index in range(number):
        name = list(CLASSES)[index % len(CLASSES)]
        words = [*chosen.sample(CLASSES[name], 3), *chosen.choices(_FILLING, k=chosen.randint(2, 9))]
        chosen.shuffle(words)
        rows.append(("".join(words), name))
    return rows


def write_titles(file: Path, rows: list[tuple[str, str]]) -> Path:
    """Titles as a table with tabs and without a header."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{title}\t{name}\n" for title, name in rows), encoding="utf-8")
    return file

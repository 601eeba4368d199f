"""Whether two models answer the same: their logits on a few texts, compared with what an adapter changes."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from softlaunch.arguments import DataArguments
from softlaunch.data.dataset import training_rows

NUM_ROWS = 8
_MAX_TOKENS = 64  # per row, its last ones: the answer
_TEXTS = (
    "你好，请介绍一下你自己。",
    "请为一件宽松的白色棉质衬衫写一段商品描述，突出舒适和百搭。",
    "今天的天气怎么样？我想和朋友去公园散步。",
    "把下面的句子翻译成英文：学而时习之，不亦说乎？",
    "What is the capital of France, and how many people live there?",
    "Write a short story about a fox that learns to swim.",
    "1, 1, 2, 3, 5, 8, 13: what is the next number, and why?",
    "def add(a, b):\n    return a + b\n\n# 请为这个函数写一个测试。",
)

Logits = list[torch.Tensor]


@dataclass(frozen=True)
class Comparison:
    """What was compared. `effect` and `difference` are root mean squares relative to the spread of the logits.

    `effect`: between base and adapter, in the row where it is smallest relative to the difference.
    `difference`: between adapter and merged model, in that row. `same_tokens` of `num_tokens` are likeliest in both.
    """

    effect: float
    difference: float
    largest: float
    same_tokens: int
    num_tokens: int


def rows_of_run(record: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> tuple[list[list[int]], str | None]:
    """Token ids of the first rows, prompt and answer, that the run of `record` was evaluated or trained on.

    With them the name of their file; without such a file a few built-in texts and None.
    """
    recorded = record.get("arguments", {}).get("data", {})
    names = [recorded.get(f"{part}_file") for part in ("validation", "test", "train")]
    file = next((name for name in names if name and Path(name).is_file()), None)
    if file is None:
        return [tokenizer(text)["input_ids"] for text in _TEXTS], None
    known = {field.name for field in fields(DataArguments)}
    arguments = DataArguments(**{name: value for name, value in recorded.items() if name in known})
    return training_rows(file, arguments, tokenizer, NUM_ROWS)["input_ids"][:], file


@torch.inference_mode()
def logits_of(model: Any, rows: Sequence[Sequence[int]]) -> Logits:
    """Per row the logits of its last tokens (num_tokens ≤ 64, vocabulary), float32, on the CPU."""
    return [
        model(input_ids=torch.tensor([list(row)], device=model.device), logits_to_keep=_MAX_TOKENS)
        .logits[0]
        .float()
        .cpu()
        for row in rows
    ]


def compare(base: Logits, adapted: Logits, merged: Logits) -> Comparison:
    """How far `merged` is from `adapted`, beside how far `adapted` is from `base`; of the worst row."""
    pairs = []
    for bare, before, after in zip(base, adapted, merged, strict=True):
        spread = before.std(dim=-1).square().mean().sqrt().item()
        pairs.append([(x - before).square().mean().sqrt().item() / spread for x in (bare, after)])
    effect, difference = max(pairs, key=lambda pair: pair[1] / max(pair[0], 1e-12))
    same = [(x.argmax(-1) == y.argmax(-1)) for x, y in zip(adapted, merged, strict=True)]
    return Comparison(
        effect=effect,
        difference=difference,
        largest=max((x - y).abs().max().item() for x, y in zip(adapted, merged, strict=True)),
        same_tokens=int(sum(row.sum() for row in same)),
        num_tokens=sum(len(row) for row in same),
    )

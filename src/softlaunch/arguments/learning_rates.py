"""The learning rate that each method works with: transformers' 5e-5 is for whole models, not for a prefix."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from softlaunch.arguments.checks import Finding
from softlaunch.messages import say

# For AdamW. Where a value comes from stands beside it; `benchmarks/methods.py` compares them on one base.
_LEARNING_RATES = {
    "p_tuning_v2": 1e-2,  # half of ChatGLM-6B's own scripts, where users with few rows saw the base forget all it knew
    "lora": 2e-4,  # QLoRA (arXiv:2305.14314), for 7B and 13B
    "ia3": 3e-3,  # T-Few (arXiv:2205.05638)
    "prompt_tuning": 3e-2,  # PEFT's examples
    "p_tuning": 1e-3,  # PEFT's examples
    "full": 2e-5,  # Alpaca, Vicuna
    "freeze": 2e-5,  # as full: the same weights, fewer of them
}
# Of a classifier: the head beside the adapter is new, texts are short and steps are many. See docs/methods.md.
_CLASSIFIER_RATES = {
    "p_tuning_v2": 5e-3,  # P-Tuning v2's authors (arXiv:2110.07602) search 5e-3 to 1e-2 and below
    "lora": 1e-3,
    "ia3": 3e-3,
    "prompt_tuning": 3e-3,
    "p_tuning": 1e-3,
    "full": 3e-5,  # BERT's authors (arXiv:1810.04805): 2e-5 to 5e-5
    "freeze": 5e-5,  # as full: the same weights, fewer of them
    "head": 3e-3,
}
_FROM_TEXT = 5e-3  # PEFT's comparison of methods on Llama-3.2-3B; with less, a prefix hardly leaves its text
_PROJECTED = 1e-3  # an MLP in front of the prefix multiplies every step
_FAR = 30  # times too high or too low


def learning_rate_of(methods: Collection[str], values: Mapping[str, Any], *, classifies: bool = False) -> float:
    """What works for these methods with these values of the other options; of several, what none of them is hurt by."""
    return min(_of_one(method, values, classifies) for method in methods)


def in_words(methods: Collection[str]) -> str:
    """`p_tuning_v2 + lora`."""
    return " + ".join(methods)


def _of_one(method: str, values: Mapping[str, Any], classifies: bool) -> float:
    if method == "p_tuning_v2" and values["prefix_init"] == "text":
        return _FROM_TEXT
    if method == "p_tuning_v2" and values["prefix_projection"]:
        return _PROJECTED
    return (_CLASSIFIER_RATES if classifies else _LEARNING_RATES)[method]


def find_far_learning_rate(methods: Collection[str], works: float, found: float) -> Iterator[Finding]:
    """Whether `methods` learn next to nothing at a learning rate, or forget all that the base can do."""
    if not works / _FAR <= found <= works * _FAR:
        message = say(
            "learning_rate {found:g} is far from what works for {method}: about {works:g}",
            found=found,
            method=in_words(methods),
            works=works,
        )
        yield ("learning_rate",), message

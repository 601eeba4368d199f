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
_FROM_TEXT = 5e-3  # PEFT's comparison of methods on Llama-3.2-3B; with less, a prefix hardly leaves its text
_PROJECTED = 1e-3  # an MLP in front of the prefix multiplies every step
_FAR = 30  # times too high or too low


def learning_rate_of(methods: Collection[str], values: Mapping[str, Any]) -> float:
    """What works for these methods with these values of the other options; of several, what none of them is hurt by."""
    return min(_of_one(method, values) for method in methods)


def in_words(methods: Collection[str]) -> str:
    """`p_tuning_v2 + lora`."""
    return " + ".join(methods)


def _of_one(method: str, values: Mapping[str, Any]) -> float:
    if method == "p_tuning_v2" and values["prefix_init"] == "text":
        return _FROM_TEXT
    if method == "p_tuning_v2" and values["prefix_projection"]:
        return _PROJECTED
    return _LEARNING_RATES[method]


def find_far_learning_rate(
    methods: Collection[str], values: Mapping[str, Any], given: Collection[str]
) -> Iterator[Finding]:
    """A given learning rate with which `methods` learn next to nothing, or forget all that the base can do."""
    works, found = learning_rate_of(methods, values), values["learning_rate"]
    if "learning_rate" in given and values["do_train"] and not works / _FAR <= found <= works * _FAR:
        message = say(
            "learning_rate {found:g} is far from what works for {method}: about {works:g}",
            found=found,
            method=in_words(methods),
            works=works,
        )
        yield ("learning_rate",), message

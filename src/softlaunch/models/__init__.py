"""Base models and their tokenizers, by path."""

from softlaunch.models.base import check_base, load_base, load_base_tokenizer
from softlaunch.models.load import choose_dtype, load_model, load_skeleton
from softlaunch.models.tokenizer import load_tokenizer

__all__ = [
    "check_base",
    "choose_dtype",
    "load_base",
    "load_base_tokenizer",
    "load_model",
    "load_skeleton",
    "load_tokenizer",
]

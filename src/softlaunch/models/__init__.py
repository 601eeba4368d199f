"""Base models and their tokenizers, by path."""

from softlaunch.models.base import load_base
from softlaunch.models.load import choose_dtype, load_model
from softlaunch.models.tokenizer import load_tokenizer

__all__ = ["choose_dtype", "load_base", "load_model", "load_tokenizer"]

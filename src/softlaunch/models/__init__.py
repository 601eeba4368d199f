"""Base models and their tokenizers, by path."""

from softlaunch.models.load import load_model

__all__ = ["load_model"]

"""Soft prompts and LoRA for ChatGLM-style models, launched anywhere Accelerate runs."""

__version__ = "0.1.0"

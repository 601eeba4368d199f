"""Adapters: what is added to a frozen base and trained."""

from softlaunch.tuning.prefix import PrefixModel, add_prefix, load_adapter

__all__ = ["PrefixModel", "add_prefix", "load_adapter"]

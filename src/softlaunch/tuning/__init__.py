"""Adapters: what is added to a frozen base and trained."""

from softlaunch.tuning.earlier import earlier_adapter
from softlaunch.tuning.prefix import add_prefix, export_adapter, load_adapter
from softlaunch.tuning.prefix_model import PrefixModel

__all__ = ["PrefixModel", "add_prefix", "earlier_adapter", "export_adapter", "load_adapter"]

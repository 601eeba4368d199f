"""Adapters: what is added to a frozen base and trained; and training the base itself."""

from softlaunch.tuning.adapter_model import AdapterModel
from softlaunch.tuning.digest import digest
from softlaunch.tuning.earlier import earlier_adapter, earlier_model
from softlaunch.tuning.from_arguments import with_adapter
from softlaunch.tuning.full import train_all, train_last_layers
from softlaunch.tuning.load import load_adapter
from softlaunch.tuning.peft_methods import add_ia3, add_lora, add_p_tuning, add_prompt_tuning
from softlaunch.tuning.prefix import add_prefix, export_adapter
from softlaunch.tuning.prefix_model import PrefixModel
from softlaunch.tuning.soft_prompt import SoftPromptModel
from softlaunch.tuning.summary import TrainableSummary, trainable_summary
from softlaunch.tuning.switch import use_adapters

__all__ = [
    "AdapterModel",
    "PrefixModel",
    "SoftPromptModel",
    "TrainableSummary",
    "add_ia3",
    "add_lora",
    "add_p_tuning",
    "add_prefix",
    "add_prompt_tuning",
    "digest",
    "earlier_adapter",
    "earlier_model",
    "export_adapter",
    "load_adapter",
    "train_all",
    "train_last_layers",
    "trainable_summary",
    "use_adapters",
    "with_adapter",
]

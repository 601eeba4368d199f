"""Trackers and optimizers that are asked for and are not there; transformers finds out after the model is loaded."""

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from softlaunch.arguments.checks import Finding, did_you_mean
from softlaunch.messages import say

# How the names of optimizers begin → (module, what to install); transformers keeps its own lists to itself
_OPTIMIZERS = {
    "galore_": ("galore_torch", "galore-torch"),
    "apollo_": ("apollo_torch", "apollo-torch"),
    "lomo": ("lomo_optim", "lomo-optim"),
    "adalomo": ("lomo_optim", "lomo-optim"),
    "grokadamw": ("grokadamw", "grokadamw"),
    "schedule_free_": ("schedulefree", "schedulefree"),
    "stable_adamw": ("optimi", "torch-optimi"),
    "adamw_torch_4bit": ("torchao", "torchao"),
    "adamw_torch_8bit": ("torchao", "torchao"),
    "adamw_torch_xla": ("torch_xla", "torch_xla"),
    "adamw_torch_npu": ("torch_npu", "torch_npu"),
    "adamw_anyprecision": ("torchdistx", "torchdistx"),
    **dict.fromkeys(
        ("adamw_bnb", "adamw_8bit", "ademamix", "lion_", "paged_", "rmsprop_bnb"), ("bitsandbytes", "bitsandbytes")
    ),
}
_UNCHECKED = ("flyte", "azure_ml")  # the list of available trackers leaves them out where they are there


def find_missing_packages(values: Mapping[str, Any]) -> Iterator[Finding]:
    """What `report_to` and `optim` name that does not exist, or needs a package that is not installed."""
    asked = values["report_to"]
    for name in [asked] if isinstance(asked, str) else asked or []:
        if asked not in ("none", "all", ["none"], ["all"]):
            yield from _check_tracker(name)
    optimizer = str(values["optim"])
    for start, (module, package) in _OPTIMIZERS.items():
        if optimizer.startswith(start) and find_spec(module) is None:
            message = say(
                "optim {name} needs the package {package}, which is not installed", name=optimizer, package=package
            )
            yield ("optim",), message


def _check_tracker(name: str) -> Iterator[Finding]:
    from transformers.integrations import integration_utils  # it looks for every tracker: half a second

    known = list(integration_utils.INTEGRATION_TO_CALLBACK)
    if name not in known:
        message = say(
            "report_to {name} is no tracker; known are none, all, {known}. {hint}",
            name=name,
            known=", ".join(known),
            hint=did_you_mean(name, known),
        )
        yield ("report_to",), message.rstrip()
    elif name not in (*integration_utils.get_available_reporting_integrations(), *_UNCHECKED):
        message = say("report_to {name} needs the package {package}, which is not installed", name=name, package=name)
        yield ("report_to",), message

"""Several adapters on one base: which of them works in a call."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from peft import PeftModel

from softlaunch.errors import ArgumentError
from softlaunch.tuning.adapter_model import require_adapter
from softlaunch.tuning.prefix_model import PrefixModel


@contextmanager
def use_adapters(model: PeftModel, *names: str) -> Iterator[None]:
    """Inside, the adapters of these names work and no others: with two names a prefix and LoRA, with none the base.

    Afterwards all is as before. Raises ArgumentError for a name that there is not, and for two adapters of one kind.
    """
    parts = [model, model.lora] if isinstance(model, PrefixModel) and model.lora else [model]
    for name in names:
        require_adapter(name, (name for part in parts for name in part.peft_config))
    with ExitStack() as stack:
        for part in parts:
            stack.enter_context(_use(part, [name for name in names if name in part.peft_config]))
        yield


@contextmanager
def _use(model: PeftModel, names: list[str]) -> Iterator[None]:
    if len(names) > 1:
        raise ArgumentError("{names} are adapters of one kind: name one of them", names=", ".join(names))
    if not names:
        with model.disable_prefix() if isinstance(model, PrefixModel) else model.disable_adapter():
            yield
        return
    before, trainable = model.active_adapter, [p for p in model.parameters() if p.requires_grad]
    switch = model.set_prefix if isinstance(model, PrefixModel) else model.set_adapter
    switch(names[0], inference_mode=True)
    try:
        yield
    finally:
        switch(before, inference_mode=True)
        for parameter in trainable:
            parameter.requires_grad_(True)

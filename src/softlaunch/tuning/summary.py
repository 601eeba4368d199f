"""How much of a model trains, and where it sits."""

import re
from dataclasses import dataclass

from torch import nn

_LAYER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class TrainableSummary:
    """Numbers of parameters. `places`: by what they belong to, with the layers that have it: `layers.0-27.…`."""

    trainable: int
    total: int
    places: dict[str, int]

    @property
    def share(self) -> float:
        return self.trainable / self.total


def trainable_summary(model: nn.Module) -> TrainableSummary:
    """Counts every parameter once, whole where it is split over processes, unpacked where it is quantized."""
    total, places, layers = 0, dict[str, int](), dict[str, set[int]]()
    for name, parameter in model.named_parameters():
        size = _num_elements(parameter)
        total += size
        if not parameter.requires_grad:
            continue
        place = _LAYER.sub(".*.", _short(name), count=1)
        places[place] = places.get(place, 0) + size
        layers.setdefault(place, set()).update(int(number) for number in _LAYER.findall(name)[:1])
    named = {place.replace("*", _ranges(layers[place]), 1): size for place, size in places.items()}
    return TrainableSummary(sum(places.values()), total, named)


def _num_elements(parameter: nn.Parameter) -> int:
    size = getattr(parameter, "ds_numel", None) or parameter.numel()
    packed = type(parameter).__name__ == "Params4bit" and parameter.element_size() == 1
    return 2 * size if packed else size  # bitsandbytes puts two numbers into a byte


def _short(name: str) -> str:
    """The layer that an adapter sits in, or the part of the base that trains: `layers.3.self_attn.q_proj`,
    `prefix_encoder`, `layers.3.mlp`, `lm_head`.
    """
    name = re.sub(r"^(base_model\.)*(model\.)*", "", name)
    layer, injected, _ = re.sub(r"\.(lora_|ia3_|modules_to_save)", "\0", name, count=1).partition("\0")
    if injected:
        return layer
    parts = name.split(".")
    return ".".join(parts[:3] if len(parts) > 1 and parts[1].isdigit() else parts[:1])


def _ranges(numbers: set[int]) -> str:
    """`0-27`, or `0,2,4` where some are missing."""
    found = sorted(numbers)
    if len(found) > 1 and found == list(range(found[0], found[-1] + 1)):
        return f"{found[0]}-{found[-1]}"
    return ",".join(map(str, found))

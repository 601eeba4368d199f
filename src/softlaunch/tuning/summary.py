"""How much of a model trains, and where it sits."""

import re
from dataclasses import dataclass

from torch import nn

_LAYER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class TrainableSummary:
    """Numbers of parameters. `places`: by the name of the tensor, with the layers that have it: `layers.0-27.…`."""

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
    """Without what PEFT puts in front, the adapter's usual name and the kind of tensor."""
    name = re.sub(r"^(base_model\.)*(model\.)*", "", name)
    return name.replace(".default", "").removesuffix(".weight")


def _ranges(numbers: set[int]) -> str:
    """`0-27`, or `0,2,4` where some are missing."""
    found = sorted(numbers)
    if len(found) > 1 and found == list(range(found[0], found[-1] + 1)):
        return f"{found[0]}-{found[-1]}"
    return ",".join(map(str, found))

"""Will it fit, what will it do, and if not: which setting to change first. Arithmetic on config.json alone."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from softlaunch.launching.memory import GIB, Memory, training_memory
from softlaunch.launching.settings import RunSettings
from softlaunch.launching.shape import ModelShape
from softlaunch.launching.strategy import Machines, Strategy
from softlaunch.launching.trainable import trainable_parameters
from softlaunch.launching.workload import Workload, plan_workload, refusing_too_large

_ZERO3 = Strategy("zero3", 3, deepspeed_file="ds_configs/zero3.json")
_OFFLOAD = Strategy(
    "zero3_offload",
    3,
    offloads_optimizer=True,
    offloads_parameters=True,
    deepspeed_file="ds_configs/zero3_offload.json",
)


@dataclass(frozen=True)
class Change:
    """One setting and its new value, as it is written on the command line, and what to know of it."""

    name: str
    value: str
    settings: RunSettings
    strategy: Strategy
    also: tuple[tuple[str, str], ...] = ()  # what has to change with it, so that an optimizer step sees as many rows


@dataclass(frozen=True)
class Plan:
    """`changes`: what to do, in this order, when it does not fit; empty when it fits or when nothing would help."""

    shape: ModelShape
    settings: RunSettings
    strategy: Strategy
    machines: Machines
    trained: int
    memory: Memory
    workload: Workload | None
    changes: tuple[Change, ...]

    @property
    def fits(self) -> bool:
        return _fits(self.memory, self.machines)


@refusing_too_large()
def make_plan(shape: ModelShape, settings: RunSettings, strategy: Strategy, machines: Machines) -> Plan:
    """Raises ArgumentError when a method lacks its size."""
    memory = training_memory(shape, settings, strategy, machines)
    return Plan(
        shape=shape,
        settings=settings,
        strategy=strategy,
        machines=machines,
        trained=trainable_parameters(shape, settings),
        memory=memory,
        workload=plan_workload(shape, settings, strategy, machines) if settings.do_train else None,
        changes=() if _fits(memory, machines) else _advice(shape, settings, strategy, machines),
    )


def _fits(memory: Memory, machines: Machines) -> bool:
    return not machines.on_gpu or memory.peak <= machines.gpu_memory_gib * GIB


def _advice(shape: ModelShape, settings: RunSettings, strategy: Strategy, machines: Machines) -> tuple[Change, ...]:
    """The first change that makes it fit by itself, cheap ones first; else as few of them together as it takes."""

    def peak(change: Change) -> int:
        return training_memory(shape, change.settings, change.strategy, machines).peak

    room = machines.gpu_memory_gib * GIB
    alone = next((change for change in _candidates(settings, strategy, machines) if peak(change) <= room), None)
    if alone is not None:
        return (alone,)
    return _in_order(shape, settings, strategy, machines) or _by_effect(shape, settings, strategy, machines)


def _in_order(shape: ModelShape, settings: RunSettings, strategy: Strategy, machines: Machines) -> tuple[Change, ...]:
    """Setting by setting, cheap ones first, each as mildly as is enough and else as far as it goes."""
    found: list[Change] = []
    peak, room = training_memory(shape, settings, strategy, machines).peak, machines.gpu_memory_gib * GIB
    for name in dict.fromkeys(change.name for change in _candidates(settings, strategy, machines)):
        for change in [c for c in _candidates(settings, strategy, machines) if c.name == name]:
            left = training_memory(shape, change.settings, change.strategy, machines).peak
            if left < peak:
                found = [*(c for c in found if c.name != name), change]
                settings, strategy, peak = change.settings, change.strategy, left
            if left <= room:
                return tuple(found)
    return ()


def _by_effect(shape: ModelShape, settings: RunSettings, strategy: Strategy, machines: Machines) -> tuple[Change, ...]:
    """The changes that save most, one after the other."""

    def peak(change: Change) -> int:
        return training_memory(shape, change.settings, change.strategy, machines).peak

    found: list[Change] = []
    while True:
        before = training_memory(shape, settings, strategy, machines).peak
        if before <= machines.gpu_memory_gib * GIB:
            return tuple(found)
        # The smallest batch that a change of the batch leads to: each setting is named once
        tried = {c.name: c for c in _candidates(settings, strategy, machines)}
        best = min(tried.values(), key=peak, default=None)
        if best is None or peak(best) >= before:
            return ()
        found.append(best)
        settings, strategy = best.settings, best.strategy


def _candidates(settings: RunSettings, strategy: Strategy, machines: Machines) -> Iterator[Change]:
    """From what costs least: recomputation, smaller batches of as many rows per step, fewer bits, split weights."""

    def change(name: str, value: str, *also: tuple[str, str], **fields: object) -> Change:
        return Change(name, value, dataclasses.replace(settings, **fields), strategy, also)  # type: ignore[arg-type]

    if settings.do_train and not settings.activation_checkpointing:
        yield change("activation_checkpointing", "true", activation_checkpointing=True)
    for size in _halves(settings.per_device_eval_batch_size):
        yield change("per_device_eval_batch_size", str(size), per_device_eval_batch_size=size)
    for size in _halves(settings.per_device_train_batch_size):
        steps = settings.gradient_accumulation_steps * settings.per_device_train_batch_size // size
        yield change(
            "per_device_train_batch_size",
            str(size),
            ("gradient_accumulation_steps", str(steps)),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
        )
    trains_base = {"full", "freeze"} & set(settings.methods)
    may_quantize = not (trains_base or settings.classifies)
    if settings.quantization_bit is None and may_quantize and strategy.stage < 3:
        for bits in (8, 4):
            yield change("quantization_bit", str(bits), quantization_bit=bits)
    elif settings.quantization_bit == 8:
        yield change("quantization_bit", "4", quantization_bit=4)
    is_float32 = "full" in settings.methods or settings.classifies
    if settings.quantization_bit is None and not (settings.bf16 or settings.fp16) and is_float32:
        yield change("bf16", "true", bf16=True)
    if machines.num_processes > 1 and strategy.stage < 3 and settings.quantization_bit is None:
        yield Change("--launch-file", "launch/accelerate/zero3.yaml", settings, _ZERO3)
    if not strategy.offloads_parameters and settings.quantization_bit is None:
        yield Change("--launch-file", "launch/accelerate/zero3_offload.yaml", settings, _OFFLOAD)


def _halves(size: int) -> Iterator[int]:
    """Smaller batches that a whole number of makes up one of `size`."""
    while size > 1:
        size = size // 2 if size % 2 == 0 else 1
        yield size

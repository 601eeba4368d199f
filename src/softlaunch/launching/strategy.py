"""What a launch file splits over the processes, and how many of these there are."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softlaunch.errors import LaunchError


@dataclass(frozen=True)
class Strategy:
    """One way of sharing the work. `stage`: of ZeRO, 0 when nothing is split; FSDP2 counts as 3."""

    name: str
    stage: int = 0
    fsdp: bool = False
    offloads_optimizer: bool = False
    offloads_parameters: bool = False
    deepspeed_file: str | None = None

    @property
    def uses_deepspeed(self) -> bool:
        """Also where the launch file itself holds the settings, without a file of DeepSpeed's."""
        return self.deepspeed_file is not None or (self.stage > 0 and not self.fsdp)

    @property
    def splits_weights(self) -> bool:
        return self.stage == 3


@dataclass(frozen=True)
class Machines:
    """Where a run goes: `gpus_per_node` 0 means one process per node, on its CPU."""

    num_nodes: int = 1
    gpus_per_node: int = 1
    gpu_memory_gib: float = 80.0

    def __post_init__(self) -> None:
        if self.num_nodes < 1 or self.gpus_per_node < 0 or not self.gpu_memory_gib > 0:
            raise LaunchError(
                "{nodes} nodes with {gpus} GPUs of {memory:g} GiB: there must be at least one node, no negative number "
                "of GPUs, and some memory",
                nodes=self.num_nodes,
                gpus=self.gpus_per_node,
                memory=self.gpu_memory_gib,
            )

    @property
    def processes_per_node(self) -> int:
        return max(1, self.gpus_per_node)

    @property
    def num_processes(self) -> int:
        return self.num_nodes * self.processes_per_node

    @property
    def on_gpu(self) -> bool:
        return self.gpus_per_node > 0


def default_launch_file(machines: Machines) -> str:
    """Of the project, for a model that fits on one GPU."""
    if machines.num_processes > 1:
        return "launch/accelerate/ddp.yaml"
    return f"launch/accelerate/{'single_gpu' if machines.on_gpu else 'cpu'}.yaml"


def read_strategy(launch_file: str) -> Strategy:
    """The strategy of an Accelerate configuration, as those in launch/accelerate; raises LaunchError for others.

    A DeepSpeed file that it names is looked for from here, and else from the project that the launch file lies in.
    """
    import yaml

    path = Path(launch_file)
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        kind = config["distributed_type"]
    except OSError as error:
        raise LaunchError(
            "{file}: the launch file cannot be read ({error}); those of the project are launch/accelerate/*.yaml",
            file=launch_file,
            error=error.strerror,
        ) from None
    except (yaml.YAMLError, TypeError, KeyError):
        raise LaunchError(
            "{file} is no launch file: it has no distributed_type; those of the project are launch/accelerate/*.yaml",
            file=launch_file,
        ) from None
    if kind == "DEEPSPEED":
        return _deepspeed(path, config.get("deepspeed_config") or {})
    if kind == "FSDP":
        offloads = bool((config.get("fsdp_config") or {}).get("fsdp_offload_params"))
        return Strategy(path.stem, 3, fsdp=True, offloads_parameters=offloads, offloads_optimizer=offloads)
    return Strategy(path.stem)


def _deepspeed(path: Path, plugin: dict[str, Any]) -> Strategy:
    file = plugin.get("deepspeed_config_file")
    if file is None:
        stage = int(plugin.get("zero_stage", 2))
        optimizer, parameters = (
            plugin.get(f"offload_{what}_device", "none") not in ("none", None) for what in ("optimizer", "param")
        )
        return Strategy(path.stem, stage, offloads_optimizer=optimizer, offloads_parameters=parameters)
    found = next((p for p in (Path(file), *(parent / file for parent in path.resolve().parents)) if p.is_file()), None)
    if found is None:
        raise LaunchError("{file} names {config}, which is not there", file=path, config=file)
    try:
        zero = json.loads(found.read_text(encoding="utf-8"))["zero_optimization"]
    except (ValueError, KeyError, TypeError) as error:
        raise LaunchError(
            "{file} is no DeepSpeed configuration with zero_optimization: {error!r}", file=found, error=error
        ) from None

    def offloads(what: str) -> bool:
        return (zero.get(f"offload_{what}") or {}).get("device", "none") != "none"

    return Strategy(
        path.stem,
        int(zero.get("stage", 0)),
        offloads_optimizer=offloads("optimizer"),
        offloads_parameters=offloads("param"),
        deepspeed_file=file,
    )

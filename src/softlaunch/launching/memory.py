"""Bytes that a run takes on one GPU and on its node's host, by part.

Symbols: h hidden size, q query size, f ffn size, s bytes of a number in the precision that is computed in. Rows are
taken to be as long as the limits allow. docs/parallelism.md derives the formulas; `benchmarks/plan_calibration.py`
holds the sums against measurements.
"""

from dataclasses import dataclass

from softlaunch.launching.activations import Batch, Precision, activation_bytes, layer_bytes, layer_gradient_bytes
from softlaunch.launching.settings import RunSettings
from softlaunch.launching.shape import ModelShape
from softlaunch.launching.strategy import Machines, Strategy
from softlaunch.launching.trainable import num_frozen_layers, trainable_parameters

GIB = 2**30
CUDA_BYTES = int(1.5 * GIB)  # context, cuBLAS workspaces and what the allocator cannot use
PROCESS_BYTES = GIB  # of the host, for Python and its libraries
_NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # 4 bits, an 8-bit scale per 64 numbers, a float32 one per 256 of these
_ZERO3_LIVE_PARAMETERS = 1_000_000_000  # DeepSpeed's stage3_max_live_parameters
_FLOAT32 = 4
_ADAMW_BYTES = 8  # two moments per trained number
_OPTIMIZER_BYTES = {"adafactor": 0, "sgd": 0, "adamw_bnb_8bit": 2, "adamw_8bit": 2, "paged_adamw_8bit": 2}


@dataclass(frozen=True)
class Memory:
    """Bytes per GPU by part, and at each moment of the run; bytes of host memory per node.

    `loaded` is what of `weights` and `trained` is there before any adapter is added.
    """

    parts: dict[str, int]
    moments: dict[str, int]
    host: int
    loaded: int
    activations_if: dict[bool, int]  # without and with checkpointing

    @property
    def peak(self) -> int:
        return max(self.moments.values())

    @property
    def peak_moment(self) -> str:
        return max(self.moments, key=lambda moment: self.moments[moment])

    @property
    def increment(self) -> int:
        """The peak above the loaded model."""
        return self.peak - self.loaded - self.parts["CUDA"]


@dataclass(frozen=True)
class States:
    """Bytes that stay for the whole training: what every process holds of the model and its training."""

    weights: int
    in_use: int  # split weights that are put together for a while
    trained: int
    gradients: int
    optimizer: int
    loaded: int


def training_memory(shape: ModelShape, settings: RunSettings, strategy: Strategy, machines: Machines) -> Memory:
    """Every part of it. Raises ArgumentError when a method lacks its size."""
    precision = Precision.of(settings, machines)
    batch = Batch.of_training(settings)
    states = model_states(shape, settings, strategy, machines, precision)
    by_checkpointing = {on: activation_bytes(shape, settings, precision, batch, on) for on in (False, True)}
    activations = by_checkpointing[bool(settings.activation_checkpointing)]
    logits = 3 * _FLOAT32 * batch.rows * settings.label_tokens * shape.vocab_size  # log-probabilities, two gradients
    fixed = CUDA_BYTES if machines.on_gpu else 0
    always = states.weights + states.in_use + states.trained + fixed
    moments = {"model loaded": always}
    if settings.do_train:
        features = settings.methods == ("head",)
        accumulated = states.gradients if settings.gradient_accumulation_steps > 1 or not precision.trains_base else 0
        layer = 0 if features else layer_gradient_bytes(shape, precision, batch)
        if not features and settings.activation_checkpointing:
            layer += layer_bytes(shape, settings, precision, batch)
        training = always + states.optimizer
        moments |= {
            "backward begins": training + accumulated + activations + _head_bytes(shape, precision, logits),
            "backward inside": training + accumulated + activations + layer,
            "backward ends": training + states.gradients + layer,
            "optimizer step": training + states.gradients,
        }
    evaluation, generation = (
        _evaluation_bytes(shape, settings, precision),
        _generation_bytes(shape, settings, precision),
    )
    kept = states.optimizer if settings.do_train else 0
    if settings.evaluates:
        moments["evaluation"] = always + kept + evaluation
    if settings.generates:
        moments["generation"] = always + kept + generation
    parts = {
        "weights": states.weights,
        "weights in use": states.in_use,
        "trained": states.trained,
        "gradients": states.gradients if settings.do_train else 0,
        "optimizer": kept,
        "activations": activations if settings.do_train else 0,
        "logits": logits if settings.do_train else 0,
        "evaluation": evaluation if settings.evaluates else 0,
        "generation": generation if settings.generates else 0,
        "CUDA": fixed,
    }
    host = host_bytes(shape, settings, strategy, machines, precision)
    return Memory(parts, moments, host, states.loaded, by_checkpointing)


def model_states(
    shape: ModelShape, settings: RunSettings, strategy: Strategy, machines: Machines, precision: Precision
) -> States:
    """DeepSpeed in half precision trains float32 copies of its own of what the model holds in half precision."""
    processes, stage = machines.num_processes, strategy.stage
    trained, base_trained = trainable_parameters(shape, settings), _trained_of_base(shape, settings)
    frozen = _frozen_bytes(shape, settings, precision)
    has_copies = strategy.uses_deepspeed and precision.is_half
    if has_copies and settings.classifies:
        frozen = frozen * precision.size // precision.weight_size  # loaded in float32, and then made half of it
    number = precision.size if has_copies else _FLOAT32
    weights, own, gradients = frozen, number * trained, number * trained
    optimizer = trained * (_OPTIMIZER_BYTES.get(settings.optim, _ADAMW_BYTES) + (_FLOAT32 if has_copies else 0))
    loaded = frozen + number * base_trained
    if precision.trains_base and precision.is_half and not has_copies:
        own += precision.size * trained  # autocast keeps its copies in half precision for the backward pass
    computes_frozen = not (has_copies or precision.trains_base or "head" in settings.methods)
    if settings.classifies and precision.is_half and computes_frozen:
        own += precision.size * shape.num_layers * shape.matrix_parameters  # of frozen ones likewise
    in_use = 0
    if stage >= 1:
        optimizer //= processes
    if stage >= 2:
        gradients //= processes
    elif processes > 1:
        gradients *= 2  # the buckets that are reduced
    if stage == 3:
        whole = weights + own
        live = 2 * shape.block_parameters + shape.outer_parameters if strategy.fsdp else _ZERO3_LIVE_PARAMETERS
        in_use = min(whole - whole // processes, live * precision.size)
        weights, own = weights // processes, own // processes
    if strategy.offloads_optimizer:
        optimizer = 0
    if strategy.offloads_parameters:
        weights = own = 0
    return States(weights, in_use, own, gradients, optimizer, loaded)


def host_bytes(
    shape: ModelShape, settings: RunSettings, strategy: Strategy, machines: Machines, precision: Precision
) -> int:
    """Per node, at its highest: while the base is loaded, or with what is offloaded there.

    ZeRO-3 reads the base once, on process 0; the others read it in every process. A quantized one is packed tensor by
    tensor, so that only a GPU's memory holds it.
    """
    per_node = machines.processes_per_node
    base = _frozen_bytes(shape, settings, precision) + _trained_of_base(shape, settings) * precision.weight_size
    if settings.quantization_bit is not None and machines.on_gpu:
        loading = 0
    else:
        loading = base if strategy.splits_weights and not strategy.fsdp else base * per_node
    offloaded = 0
    share = per_node / machines.num_processes
    if strategy.offloads_optimizer:
        # float32 copy, gradient and two moments of what is trained
        offloaded += int(trainable_parameters(shape, settings) * (2 * _FLOAT32 + _ADAMW_BYTES) * share)
    if strategy.offloads_parameters:
        offloaded += int(base * share)
    return PROCESS_BYTES * per_node + max(loading, offloaded)


def _trained_of_base(shape: ModelShape, settings: RunSettings) -> int:
    if "full" in settings.methods:
        return shape.parameters
    if "freeze" in settings.methods:
        return (shape.num_layers - num_frozen_layers(shape, settings)) * shape.block_parameters
    return 0


def _frozen_bytes(shape: ModelShape, settings: RunSettings, precision: Precision) -> int:
    if settings.quantization_bit is None:
        return (shape.parameters - _trained_of_base(shape, settings)) * precision.weight_size
    packed = shape.num_layers * shape.matrix_parameters
    per_number = {4: _NF4_BYTES, 8: 1.0}[settings.quantization_bit]
    return int(packed * per_number) + (shape.parameters - packed) * precision.size


def _head_bytes(shape: ModelShape, precision: Precision, logits: int) -> int:
    """The logits at their peak, or their last gradient with that of the output layer if that is trained."""
    if not precision.trains_head:
        return logits
    return max(logits, logits // 3 + _FLOAT32 * shape.vocab_size * shape.hidden_size)


def _evaluation_bytes(shape: ModelShape, settings: RunSettings, precision: Precision) -> int:
    """Logits and their log-probabilities at the answers, and one layer's intermediate results."""
    rows = settings.per_device_eval_batch_size
    copies = 2 * _FLOAT32 + (precision.size if precision.is_half else 0)
    return rows * (
        settings.label_tokens * shape.vocab_size * copies + settings.row_tokens * _forward_bytes(shape, precision)
    )


def _generation_bytes(shape: ModelShape, settings: RunSettings, precision: Precision) -> int:
    """Keys and values of every token, the prompt's pass through one layer, and the next token's scores."""
    rows = settings.per_device_eval_batch_size * settings.num_beams
    tokens = settings.max_source_length + settings.new_tokens
    cache = shape.num_layers * 2 * shape.kv_size * precision.size * (tokens + (settings.pre_seq_len or 0))
    prompt = settings.max_source_length * _forward_bytes(shape, precision)
    return rows * (cache + prompt + 3 * _FLOAT32 * shape.vocab_size)


def _forward_bytes(shape: ModelShape, precision: Precision) -> int:
    """Per token, in one layer without gradients."""
    return 4 * _FLOAT32 * shape.hidden_size + precision.size * (4 * shape.query_size + 4 * shape.ffn_size)

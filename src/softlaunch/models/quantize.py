"""Loading the base in 8 or 4 bits (bitsandbytes), so that only the adapter is kept in full precision.

transformers reads one tensor after the other and packs it before it reads the next. So loading takes the memory of the
packed model and, for a moment, that of one tensor at a time: on the CPU about seven times the largest one in 4 bits and
four times in 8 bits, which is less than a shard of a released checkpoint. Shards are mapped, not read as a whole; the
mapped pages count as resident, but the system takes them back when it needs the memory.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from softlaunch.errors import ArgumentError


def quantization_config(bits: int, compute_dtype: torch.dtype) -> BitsAndBytesConfig:
    """8: LLM.int8(); 4: NF4 with double quantization (QLoRA, arXiv:2305.14314). Weights are quantized as they are read.

    Raises ArgumentError for other numbers, and when bitsandbytes is not installed.
    """
    if bits not in (4, 8):
        raise ArgumentError("quantization_bit is {bits}; allowed are 4 and 8, or leave it out", bits=bits)
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise ArgumentError(
            "quantization_bit needs bitsandbytes, which is not installed: pip install 'softlaunch[quantization]'"
        ) from error
    # It would log a line per layer and step about the cast to float16 that LLM.int8() consists of
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )


def keep_weights_as_loaded(model: nn.Module) -> None:
    """Stop bitsandbytes from packing 4-bit weights anew for the CPU at the first evaluation.

    No gradient comes through weights that are packed so, and training goes on after an evaluation. And ZeRO-3 has split
    the weights by then, and puts them together by the sizes that they were loaded with.
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


@contextmanager
def own_gpu() -> Iterator[None]:
    """Inside, the current GPU is the one that Accelerate gives to this process; nothing happens where there is none.

    A quantized model is put on the current GPU while it is read, and cannot move later. A `device_map` would say the
    same, but ZeRO-3 takes none.
    """
    if not torch.cuda.is_available():
        yield
        return
    index = int(os.environ.get("LOCAL_RANK", torch.cuda.current_device()))
    with torch.cuda.device(index % torch.cuda.device_count()):
        yield

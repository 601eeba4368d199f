"""Loading the base in 8 or 4 bits (bitsandbytes), so that only the adapter is kept in full precision."""

import torch
from transformers import BitsAndBytesConfig

from softlaunch.errors import ArgumentError


def quantization_config(bits: int, compute_dtype: torch.dtype) -> BitsAndBytesConfig:
    """8: LLM.int8(); 4: NF4 with double quantization (QLoRA, arXiv:2305.14314). Weights are quantized as they are read.

    Raises ArgumentError for other numbers, and when bitsandbytes is not installed.
    """
    if bits not in (4, 8):
        raise ArgumentError(f"quantization_bit is {bits}; allowed are 4 and 8, or leave it out")
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise ArgumentError(
            "quantization_bit needs bitsandbytes, which is not installed: pip install 'softlaunch[quantization]'"
        ) from error
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )

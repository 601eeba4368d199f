"""P-Tuning v2 at the shape of ChatGLM2-6B: memory and speed of every precision, prefix, batch and checkpointing.

    python benchmarks/prefix_sweep.py        # one GPU of 24 GB or more
    python benchmarks/prefix_sweep.py --num_layers 2 --hidden_size 256 --head_dim 64 --dtype float32   # to try it

Weights are random: a step costs the same whatever they are. Rows have ADGEN's lengths. Each line is one process's peak
above nothing (weights, prefix, optimizer, activations), without what CUDA itself takes. What does not fit says so.
"""

import argparse
import itertools

import datasets
import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from common import MIB, Clock, Peak, base, batches, device, rows, training_arguments
from rich.console import Console
from rich.table import Table
from torch import nn

from softlaunch.training.trainer import CausalTrainer
from softlaunch.tuning import add_prefix


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="JSON lines with content and summary, in place of generated rows")
    parser.add_argument("--tokenizer", help="released ChatGLM2 directory, with --data")
    parser.add_argument("--bits", type=int, nargs="+", default=[16, 4], choices=[16, 4])
    parser.add_argument("--pre_seq_len", type=int, nargs="+", default=[16, 64, 128])
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--num_layers", type=int, default=28)
    parser.add_argument("--hidden_size", type=int, default=4096)
    parser.add_argument("--head_dim", type=int, default=128)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    return parser.parse_args()


def quantize(model: nn.Module) -> None:
    """The layers' matrices as `quantization_bit` 4 makes them: nf4 with double quantization; lm_head stays as it is."""
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and path.startswith("model.layers."):
            parent, name = model.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2]
            dtype, biased = module.weight.dtype, module.bias is not None
            new = Linear4bit(module.in_features, module.out_features, biased, dtype, quant_type="nf4", device="meta")
            new.weight = Params4bit(module.weight.data.cpu(), requires_grad=False, quant_type="nf4").to(device())
            new.bias = module.bias
            setattr(parent, name, new)


def measure(args: argparse.Namespace, data: datasets.Dataset, bits: int, length: int, checkpointing: bool) -> list[str]:
    """Peak in GiB of model and training, seconds per step without the first, real tokens per second."""
    clock = Clock()
    try:
        with Peak() as peak:
            model = base(args)
            if bits == 4:
                quantize(model)
                if device() == "cuda":
                    torch.cuda.empty_cache()
                    torch.cuda.reset_peak_memory_stats()  # of the model as it is trained
            training = training_arguments(args, gradient_checkpointing=checkpointing, logging_steps=1000)
            tuned = add_prefix(model, num_virtual_tokens=length)
            CausalTrainer(model=tuned, args=training, train_dataset=data, pad_token_id=0, callbacks=[clock]).train()
    except torch.OutOfMemoryError:
        return ["does not fit", "", ""]
    tokens = [int(batch["attention_mask"].sum()) for batch in batches(data, args)]
    seconds = sum(clock.times[1:])
    return [f"{peak.mib * MIB / 2**30:.2f}", f"{seconds / (args.steps - 1):.3f}", f"{sum(tokens[1:]) / seconds:,.0f}"]


def main() -> None:
    args = parse_arguments()
    table = Table(title=f"{torch.cuda.get_device_name() if device() == 'cuda' else 'CPU'}, {args.dtype}")
    for name in ("base", "prefix", "batch", "checkpointing", "peak GiB", "s/step", "tokens/s"):
        table.add_column(name, justify="right")
    for bits, length, batch_size in itertools.product(args.bits, args.pre_seq_len, args.batch_sizes):
        args.batch_size = batch_size
        data = rows(args, args.steps * batch_size)
        for checkpointing in (True, False):
            figures = measure(args, data, bits, length, checkpointing)
            settings = (f"{bits} bits", str(length), str(batch_size), "yes" if checkpointing else "no")
            table.add_row(*settings, *figures)
            Console(stderr=True).print(*settings, *figures)  # as it comes, for a run that is cut off
    Console(width=100).print(table)


if __name__ == "__main__":
    main()

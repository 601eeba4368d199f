"""A prefix on a base that `fully_shard` splits over two processes, against the same one unsplit.

On the CPU Accelerate makes DDP of FSDP2 without saying so; this takes PyTorch's own call, as Accelerate does on GPUs:
`torchrun --nproc_per_node 2 fsdp2_cases.py DIRECTORY`.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from accelerate import PartialState
from accelerate.utils import FullyShardedDataParallelPlugin, load_fsdp_model, save_fsdp_model
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from softlaunch.entry import run
from softlaunch.evaluation.whole import whole_weights
from softlaunch.training.checkpoint import trained_tensors
from softlaunch.training.diagnosis import Batch
from softlaunch.training.guard import Guard, TrainingError
from softlaunch.tuning import PrefixModel, add_prefix, digest
from tests.bases import batch, random_base

NUM_STEPS = 4
NO_DEEPSPEED = SimpleNamespace(deepspeed_plugin=None, fp16=False)
LENGTHS = [(4, 7), (9, 3), (6, 12), (2, 2)]  # prompt and answer of each row; a process gets two


def tuned(*, gradient_checkpointing: bool) -> PrefixModel:
    base = random_base("glm")
    if gradient_checkpointing:
        base.gradient_checkpointing_enable({"use_reentrant": False})
    torch.manual_seed(0)
    return add_prefix(base, num_virtual_tokens=5, dropout=0.0)


def split(model: PrefixModel) -> PrefixModel:
    """As `accelerate.utils.fsdp2_prepare_model` and Trainer do."""
    for layer in model.base_model.model.layers:
        fully_shard(layer)
    fully_shard(model.get_input_embeddings())
    fully_shard([model.base_model.model.norm, model.base_model.lm_head], reshard_after_forward=False)
    fully_shard(model)
    register_fsdp_forward_method(model, "generate")
    return model


def train(model: PrefixModel, rows: slice, num_processes: int) -> list[float]:
    """The loss of every step over all processes; processes average their gradients, as in CausalTrainer."""
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(3, 96, (p + a,), generator=generator).tolist() for p, a in LENGTHS]
    num_labels = sum(a for _, a in LENGTHS)
    inputs = batch(ids[rows], "right")
    labels = inputs["input_ids"].clone()
    for row, (prompt, answer) in enumerate(LENGTHS[rows]):
        labels[row, :prompt] = labels[row, prompt + answer :] = -100
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.0)
    losses = []
    for _ in range(NUM_STEPS):
        logits = model.train()(**inputs, use_cache=False).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels[:, 1:], reduction="sum") / num_labels
        (loss * num_processes).backward()
        Guard(NO_DEEPSPEED).on_pre_optimizer_step(NO_DEEPSPEED, None, None, model=model)
        optimizer.step()
        optimizer.zero_grad()
        total = loss.detach()
        if num_processes > 1:
            torch.distributed.all_reduce(total)
        losses.append(total.item())
    return losses


def look(model: PrefixModel, prompts: list[list[int]]) -> dict:
    """What the rest of a run asks of a trained model; the answers of `prompts` as token ids."""
    inputs, state = batch(prompts, "left"), digest(model)
    model.eval()
    with whole_weights(model) as synced, torch.no_grad():
        out = model.generate(**inputs, max_new_tokens=6, do_sample=False, synced_gpus=synced)
    (table,) = trained_tensors(model).values()
    answers = out[:, inputs["input_ids"].shape[1] :].tolist()
    return {"synced": synced, "answers": answers, "digest": state, "table": table.tolist()}


def stop_message(model: PrefixModel, rank: int) -> str:
    """What every process says when only the second has a row without a finite loss."""
    nll = torch.tensor([1.0, float("nan") if rank == 1 else 1.0, 1.0])
    row_ids = torch.tensor([10 * rank, 10 * rank + 1])
    guard = Guard(SimpleNamespace(deepspeed_plugin=None, fp16=False, learning_rate=0.1))
    try:
        guard.check_loss(nll.sum(), Batch(nll, torch.tensor([0, 1, 1]), row_ids, 6), model, step=4)
    except TrainingError as error:
        return str(error)
    return "nothing"


def checkpoint_returns(model: PrefixModel, directory: Path) -> bool:
    """Whether a checkpoint brings the prefix back, saved and loaded as Trainer and Accelerate do on GPUs."""
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, state_dict_type="FULL_STATE_DICT")
    rank, num_processes = torch.distributed.get_rank(), torch.distributed.get_world_size()
    accelerator = SimpleNamespace(
        num_processes=num_processes,
        process_index=rank,
        is_main_process=rank == 0,
        is_fsdp2=True,
        wait_for_everyone=torch.distributed.barrier,
    )
    save_fsdp_model(plugin, accelerator, model, str(directory), adapter_only=True)
    ((_, before),) = trained_tensors(model).items()
    with torch.no_grad():
        model.encoder().embedding.weight.zero_()
    load_fsdp_model(plugin, accelerator, model, str(directory), adapter_only=True)
    ((_, after),) = trained_tensors(model).items()
    return torch.equal(before, after) and bool(before.any())


def run_cases(directory: Path) -> None:
    PartialState(cpu=True)
    rank, num_processes = torch.distributed.get_rank(), torch.distributed.get_world_size()
    prompts = [[5, 6, 7], [8, 9, 10, 11, 12], [20, 21], [30, 31, 32, 33]]
    found = {"num_processes": num_processes}
    for name, checkpointing in (("plain", False), ("checkpointing", True)):
        alone = tuned(gradient_checkpointing=checkpointing)
        parts = split(tuned(gradient_checkpointing=checkpointing))
        share = slice(2 * rank, 2 * rank + 2)
        found[name] = {
            "num_parameters": len(list(parts.parameters())),
            "num_split": sum(isinstance(p, DTensor) for p in parts.parameters()),
            "losses": [train(alone, slice(None), 1), train(parts, share, num_processes)],
            "looks": [look(alone, prompts[share]), look(parts, prompts[share])],
            "checkpoint_returns": checkpoint_returns(parts, directory / name),
        }
    found["stop"] = stop_message(tuned(gradient_checkpointing=False), rank)
    (directory / f"rank-{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    run(lambda: run_cases(Path(sys.argv[1])))

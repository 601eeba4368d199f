"""The order in which rows are trained on and answered: like lengths together, the same for any number of processes."""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

_GROUPS_PER_POOL = 50


class LengthGroupedSampler(Sampler[int]):
    """Shuffled rows in which the `rows_per_update` of each optimizer step are of like length.

    It shuffles whole updates, not the batches of one process, so that every split of an update into processes, batches
    and accumulation steps trains on the same rows in the same step. The last update is filled up with rows from the
    beginning of the epoch, for the same reason. The update with the longest row comes first: memory runs out there or
    nowhere. The order depends on `seed` and the epoch alone.
    """

    def __init__(self, lengths: Sequence[int], rows_per_update: int, seed: int):
        self.lengths, self.rows_per_update, self.seed, self.epoch = lengths, rows_per_update, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Accelerate at the beginning of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Rows per epoch: the number of rows, rounded up to whole updates."""
        return -(-len(self.lengths) // self.rows_per_update) * self.rows_per_update

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        shuffled = torch.randperm(len(self.lengths), generator=generator).tolist()
        while len(shuffled) < len(self):
            shuffled += shuffled[: len(self) - len(shuffled)]
        size = self.rows_per_update * _GROUPS_PER_POOL
        updates = []
        for start in range(0, len(shuffled), size):
            pool = sorted(shuffled[start : start + size], key=lambda row: -self.lengths[row])
            updates += [pool[i : i + self.rows_per_update] for i in range(0, len(pool), self.rows_per_update)]
        longest = max(range(len(updates)), key=lambda i: self.lengths[updates[i][0]])
        updates[0], updates[longest] = updates[longest], updates[0]
        order = [0, *(torch.randperm(len(updates) - 1, generator=generator) + 1).tolist()]
        return iter([row for update in order for row in updates[update]])


def batches_of_process(
    lengths: Sequence[int], batch_size: int, process_index: int, num_processes: int
) -> tuple[list[list[int]], int]:
    """Rows in batches of like length, the longest first: those of one process, and how many rounds all processes take.

    A process whose batches run out before the rounds do has nothing left to answer.
    """
    longest_first = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    batches = [longest_first[i : i + batch_size] for i in range(0, len(longest_first), batch_size)]
    return batches[process_index::num_processes], -(-len(batches) // num_processes)

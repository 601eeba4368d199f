"""The order of rows: complete, grouped by length, and the same however an update is split."""

import random
from collections import Counter

from softlaunch.data.order import LengthGroupedSampler, batches_of_process

_RANDOM = random.Random(0)
LENGTHS = [_RANDOM.randint(5, 200) for _ in range(1003)]


def test_every_row_is_seen_and_the_last_update_is_filled_up():
    order = list(LengthGroupedSampler(LENGTHS, rows_per_update=16, seed=1))
    assert len(order) == 1008 == len(LengthGroupedSampler(LENGTHS, rows_per_update=16, seed=1))
    assert set(order) == set(range(1003))


def test_order_depends_on_seed_and_epoch_alone():
    sampler, again = (LengthGroupedSampler(LENGTHS, rows_per_update=16, seed=1) for _ in range(2))
    assert list(sampler) == list(sampler) == list(again)
    again.set_epoch(1)
    assert list(again) != list(sampler)
    assert list(LengthGroupedSampler(LENGTHS, rows_per_update=16, seed=2)) != list(sampler)


def test_updates_are_of_like_length_and_the_longest_comes_first():
    order = list(LengthGroupedSampler(LENGTHS, rows_per_update=16, seed=1))
    updates = [[LENGTHS[row] for row in order[i : i + 16]] for i in range(0, len(order), 16)]
    padding = sum(max(update) * 16 - sum(update) for update in updates) / sum(LENGTHS)
    assert padding < 0.05, "random batches of these lengths would be padded by about 80 %"
    assert max(updates[0]) == max(LENGTHS)
    firsts = [update[0] for update in updates[1:]]
    assert firsts != sorted(firsts)
    assert firsts != sorted(firsts, reverse=True)


def test_fewer_rows_than_an_update():
    seen = Counter(LengthGroupedSampler([3, 1, 2], rows_per_update=8, seed=0))
    assert sorted(seen.values()) == [2, 3, 3]


def test_processes_share_the_batches():
    whole, rounds = batches_of_process(LENGTHS, 8, 0, 1)
    assert sorted(row for batch in whole for row in batch) == list(range(1003))
    assert rounds == len(whole) == 126
    assert LENGTHS[whole[0][0]] == max(LENGTHS)
    parts = [batches_of_process(LENGTHS, 8, process, 4) for process in range(4)]
    assert sorted(batch for batches, _ in parts for batch in batches) == sorted(whole)
    assert [(len(batches), rounds) for batches, rounds in parts] == [(32, 32), (32, 32), (31, 32), (31, 32)]

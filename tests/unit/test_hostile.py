"""Hostile inputs end in a clear error or work; `python -m tests.hostile --cases 10000` tries more of them."""

import logging

import pytest

from tests.hostile import KINDS, check

NUM_CASES = {
    **{"argument files": 60, "adapter configs": 40, "manifests": 40, "recipe starts": 15, "data rows": 60},
    **{"runs": 150, "plans": 150},
}


@pytest.mark.parametrize("name", KINDS)
def test_it_ends_well(name):
    logging.disable()  # thousands of lines
    try:
        check(name, NUM_CASES[name])
    finally:
        logging.disable(logging.NOTSET)

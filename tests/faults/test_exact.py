"""A sample of the matrix of `exact.py`; DDP is covered by `test_deaths.py`."""

import pytest

from tests.faults.exact import METHODS, launch

pytestmark = pytest.mark.faults


@pytest.mark.parametrize("strategy", ["cpu", "zero2"])
def test_killed_and_gone_on_is_bit_for_bit_the_undisturbed_run(strategy, tmp_path):
    assert launch(strategy, tmp_path) == dict.fromkeys(METHODS, True)

"""A sample of the matrix of `exact.py`; DDP is covered by `test_deaths.py`, a single process by the campaign."""

import pytest

from tests.faults.exact import FRESH_ONCE, launch

pytestmark = pytest.mark.faults


@pytest.mark.parametrize(
    ("strategy", "methods", "stops"),
    [
        ("cpu", ["classes, LoRA", "classes, head"], [(1, 5, 8, 0)]),
        ("zero2", ["P-Tuning v2", "LoRA", "full"], FRESH_ONCE),
    ],
)
def test_killed_and_gone_on_is_bit_for_bit_the_undisturbed_run(strategy, methods, stops, tmp_path):
    assert launch(strategy, tmp_path, methods, stops) == dict.fromkeys(methods, True)

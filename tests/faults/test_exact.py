"""A sample of the matrix of `exact.py`; DDP is covered by `test_deaths.py`, a single process by the campaign."""

import pytest

from tests.faults.exact import launch

pytestmark = pytest.mark.faults


@pytest.mark.parametrize(
    ("strategy", "methods"),
    [("cpu", ["classes, LoRA", "classes, head"]), ("zero2", ["P-Tuning v2", "LoRA", "full"])],
)
def test_killed_and_gone_on_is_bit_for_bit_the_undisturbed_run(strategy, methods, tmp_path):
    assert launch(strategy, tmp_path, methods) == dict.fromkeys(methods, True)

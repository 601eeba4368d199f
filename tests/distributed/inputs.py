"""What the runs work on: the demo's base, and a few of its rows."""

from pathlib import Path

DEMO = Path(__file__).parents[2] / "recipes" / "demo"
NUM_TRAIN_ROWS = 24  # three updates
NUM_TEST_ROWS = 7  # which two processes do not divide


def write_rows(directory: Path) -> None:
    """`train.json` and `test.json`."""
    for name, num_rows in (("train.json", NUM_TRAIN_ROWS), ("test.json", NUM_TEST_ROWS)):
        lines = (DEMO / name).read_text(encoding="utf-8").splitlines(keepends=True)
        (directory / name).write_text("".join(lines[:num_rows]), encoding="utf-8")

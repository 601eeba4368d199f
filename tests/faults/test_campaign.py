"""The short form of the campaign: one kill in every phase, and each of the other faults once."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.faults

SHORT = """
import sys, tempfile
from pathlib import Path
from tests.faults.campaign import Campaign, can_mount, deleted, truncated, zeroed
from tests.faults.driver import PHASES, warm_up
import signal
warm_up()
with tempfile.TemporaryDirectory() as directory:
    campaign = Campaign(Path(directory), seed=int(sys.argv[1]))
    for phase in PHASES:
        campaign.killed(phase)
    campaign.killed("evaluation", signal.SIGTERM)
    campaign.killed("tokenisation", signal.SIGTERM)
    campaign.damaged([truncated, zeroed, deleted][campaign.random.randrange(3)])
    campaign.changed("train_file")
    campaign.two_at_once()
    if can_mount():
        campaign.full_disk()
    print("cases:", campaign.results.total())
"""


def test_short_campaign():
    """In a process of its own, for it forks: with one thread and without what other tests have left."""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", SHORT, "1"], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    assert "cases: 1" in done.stdout

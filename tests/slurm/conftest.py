"""The cluster that tests/slurm/cluster.sh starts; where it does not answer, the tests are skipped and say why."""

import os
import subprocess
from pathlib import Path

import pytest

_SCRIPT = Path(__file__).with_name("cluster.sh")


@pytest.fixture(scope="session", autouse=True)
def cluster() -> None:
    """Leads the commands to this cluster, and to no other that the machine may belong to."""
    answer = subprocess.run([_SCRIPT, "status"], capture_output=True, text=True)
    if answer.returncode:
        pytest.skip(answer.stderr.strip())
    os.environ["SLURM_CONF"] = answer.stdout.strip().partition("=")[2]

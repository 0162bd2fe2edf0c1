"""The gateway on a real local Ray cluster. Skipped without the extra `ray`, which the tests do not install."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest

from tests.support.paths import ROOT

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="the extra `ray` is not installed")


@pytest.mark.parametrize("deployment", ["Gateway", "Ingress"])
def test_every_request_has_one_ending_when_a_replica_is_killed(deployment: str) -> None:
    command = [sys.executable, "-m", "scripts.ray_kill", "--requests", "60", "--at-once", "20", "--kill", deployment]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr

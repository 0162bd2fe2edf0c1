"""scripts/soak.py for 13 s with a tiny model. docs/reliability.md has the figures of ten minutes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.support.processes import ROOT, environment


def test_short_soak_passes(tiny: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(f"[breaker]\nenabled = false\n[models.tiny]\npath = '{tiny}'\nthreads = 1\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "soak.py", "--minutes", "0.22", "--clients", "4"],
        env=environment(NPU_GATEWAY_CONFIG=str(config)),
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        timeout=600,
    )
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["PASS"]), done.stdout + done.stderr
    assert int(re.search(r"(\d+) answered", done.stdout)[1]) > 5  # type: ignore[index]
    assert int(re.search(r"(\d+) workers killed", done.stdout)[1]) > 0  # type: ignore[index]

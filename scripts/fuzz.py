"""Coverage-guided fuzzing of one target of tests/system/fuzz/targets.py, starting from its corpus.

    python scripts/fuzz.py requests --seconds 300

Needs atheris, which exists for Linux only and is in no lock file: `pip install atheris` into an environment that has
the test packages. Each finding is a file crash-* in the current folder. After the fix, move it to
tests/system/fuzz/corpus/TARGET/: `tests/system/fuzz/test_corpus.py` runs every file there.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORDS = ROOT / "tests" / "system" / "fuzz" / "words.dict"


def main() -> int:
    parser = argparse.ArgumentParser(description="Search for input that breaks a target of targets.py.")
    parser.add_argument("target", choices=("requests", "textstream", "dialects"))
    parser.add_argument("--seconds", type=int, default=60, help="duration (default: 60)")
    parser.add_argument("--keep", help="folder for inputs that reach new code (default: a temporary one)")
    arguments = parser.parse_args()
    try:
        atheris = importlib.import_module("atheris")
    except ImportError:
        print("fuzz: atheris is not installed; on Linux: pip install atheris", file=sys.stderr)
        return 2
    sys.path.insert(0, str(ROOT))
    with atheris.instrument_imports(include=["gateway"]):
        targets = importlib.import_module("tests.system.fuzz.targets").TARGETS
    kept = arguments.keep or tempfile.mkdtemp(prefix="fuzz-")
    Path(kept).mkdir(parents=True, exist_ok=True)
    # atheris writes new inputs to the first folder
    folders = [kept, str(ROOT / "tests" / "system" / "fuzz" / "corpus" / arguments.target)]
    limits = [f"-max_total_time={arguments.seconds}", "-timeout=20", "-rss_limit_mb=2048", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *limits, f"-dict={WORDS}", *folders], targets[arguments.target])
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
